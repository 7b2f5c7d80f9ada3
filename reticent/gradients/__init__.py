"""The sum of clipped per-unit gradients of any model, exactly.

`rows` packs the records of units into rows without padding; `attention` keeps records in a row apart; `rules` lets
each kind of layer hand its unit gradients to a `tally`, which finds their norms and clipped sum, by the factors of
`clip`; `head` is the output layer with its loss; `exact` refuses what cannot be exact; `engines` puts them together.
Nothing but the sum leaves an engine.
"""
