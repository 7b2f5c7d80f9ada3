"""What is promised and what was spent. Knows no text and no files' meaning, only the ledger it is given.

`plan` binds sampler, clip norm, noise and accountant so that they cannot disagree; `sampling` and `noise` draw from the
operating system's entropy; `ledger` records every noisy release and is the only source of a printed epsilon.
"""
