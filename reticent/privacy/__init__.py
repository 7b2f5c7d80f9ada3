"""What is promised and what was spent. Knows no text and no files' meaning, only the ledger it is given.

`plan` binds sampler, clipping, noise and accountant so that they cannot disagree; `sampling` and `noise` draw from the
operating system's entropy, `noise` with the coefficients of `toeplitz` where it is correlated over steps; `ledger`
records every noisy release and is the only source of a printed epsilon.
"""
