"""The sum of clipped per-unit gradients of any model, exactly.

`rows` packs the records of units into rows without padding; `attention` keeps records in a row apart; `engines`
computes the sum of the units' gradients, each clipped as a whole. Nothing but that sum leaves an engine.
"""
