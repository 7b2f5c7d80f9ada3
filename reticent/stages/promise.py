"""Whether training kept its promise, as checks of the training itself tell."""

import tempfile
from math import isfinite

from reticent.errors import RunError
from reticent.measurement import Measurement
from reticent.stages.attacking import Audited, Findings


def checks(about: Audited) -> Findings:
    """The checks of `reticent doctor`, as one number and a list."""
    from reticent.stages.doctor import implementation_checks

    try:
        found = implementation_checks(about.run, about.progress)
    except OSError as error:
        raise RunError(
            f"the checks of the training cannot write their ledger to {tempfile.gettempdir()}: {error.strerror}; make "
            "room there, or name another folder with TMPDIR"
        ) from None
    measured = Measurement(
        name="implementation_checks",
        model="private",
        value=sum(one.passed for one in found) / len(found),
        interval=None,
        n=len(found),
        unit="share",
        counted="checks",
        method="the training itself on neighbouring data with the same chance (Cebere et al., arXiv:2602.17454)",
        ceiling=1.0,
    )
    told = [{**one._asdict(), "measured": _plain(one.measured), "bound": _plain(one.bound)} for one in found]
    return Findings([measured], {"checks": told})


def _plain(value: float) -> float | str:
    """JSON has no infinity."""
    return value if isfinite(value) else "not finite"
