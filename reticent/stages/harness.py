"""Run lm-eval's tasks on a model of a run."""

import io
import logging
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reticent.errors import DataError, ReticentError, RunError
from reticent.measurement import Measurement
from reticent.progress import Progress, Task
from reticent.run import Run
from reticent.stages.inputs import AnyModel, open_model
from reticent.statistics import wilson

MISSING = "lm-eval's tasks need one more package: pip install 'reticent[lm-eval]'"
_SEED = 1234  # of demonstrations and of what tasks draw, as lm-eval's own default
_DRAWS = 1000  # of the bootstrap, where lm-eval has no formula for the error
_NORMAL = 1.959964  # two-sided, 95 %


def harness(
    run: Run,
    tasks: Sequence[str],
    *,
    model: AnyModel,
    shots: int | None,
    limit: int | None,
    include: Path | None,
    progress: Progress,
) -> list[Measurement]:
    """Each metric of each task as lm-eval computes it, named ``TASK METRIC``; nothing is written into the run.

    ``shots``: demonstrations before each item, None: as each task says. ``limit``: the first items of each task.
    ``include``: a folder of task files (YAML) beside lm-eval's own. A task whose data are local files needs no network.
    The data sets library keeps a copy of what it read in its own cache: do not name private text.

    Raises:
        RunError: lm-eval is not installed, or ``shots``, ``limit`` or ``include`` is not possible.
        DataError: a task is not known, or it, or its data, cannot be read.
        ModelError: the run has no such model.
    """
    _check(tasks, shots, limit, include)
    from lm_eval import evaluate

    from reticent.models.load import load_tokenizer
    from reticent.utility.harness import HarnessModel

    with _unheard():
        manager = _manager(tasks, include)
    asked = HarnessModel(
        open_model(run, model), load_tokenizer(run.recipe.model.base), seed=_SEED, progress=_Heard(progress)
    )
    try:
        with _unheard(), _seeded():
            found = evaluate(
                asked, _loaded(manager, tasks, shots), limit=limit, bootstrap_iters=_DRAWS, log_samples=False
            )
    except ReticentError:
        raise
    except Exception as error:  # a task is code of its own, and its data may be anywhere
        raise DataError(
            f"lm-eval could not do {', '.join(tasks)} ({type(error).__name__}). Check that its data can be reached "
            "(local files: data_files in the task's YAML, read from the current folder; else a hub), and that shots "
            "are not more than the task has demonstrations."
        ) from None
    return measurements(found, model)


def _loaded(manager: Any, tasks: Sequence[str], shots: int | None) -> Any:
    """The tasks as `lm_eval.simple_evaluate` readies them; it would also spend seconds on a look at the machine."""
    found = manager.load(list(tasks))
    for task in found["tasks"].values():
        said = task.get_config("num_fewshot")
        if said != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=(said or 0) if shots is None else shots)
        task.set_fewshot_seed(seed=_SEED)
    return found


def measurements(found: dict[str, Any], model: AnyModel) -> list[Measurement]:
    """What `lm_eval.evaluate` returned, number by number."""
    return [
        _measurement(f"{task} {metric}", metric, value, values.get(f"{metric}_stderr,{how}"), n, shots, how, model)
        for task, values in found["results"].items()
        for n, shots in [(_items(found, task), found.get("n-shot", {}).get(task, "its own"))]
        for key, value in values.items()
        for metric, _, how in [key.partition(",")]
        if how and not metric.endswith("_stderr") and isinstance(value, int | float)
    ]


def _measurement(
    name: str, metric: str, value: float, error: Any, n: int, shots: Any, how: str, model: AnyModel
) -> Measurement:
    right = value * n
    share = metric in _SHARES and 0 <= value <= 1
    interval, means = None, ""
    if share and n and math.isclose(right, round(right), abs_tol=1e-6):
        interval, means = wilson(round(right), n), ", Wilson"
    elif isinstance(error, float) and math.isfinite(error):
        interval, means = (value - _NORMAL * error, value + _NORMAL * error), ", normal by lm-eval's standard error"
    by = "" if how == "none" else f", {how}"
    return Measurement(
        name=name if how == "none" else f"{name} {how}",
        model=model,
        value=float(value),
        interval=interval,
        n=n,
        unit="share" if share else metric,
        counted="items",
        method=f"lm-eval {metadata.version('lm-eval')}{by}, {shots} demonstrations{means}",
        ceiling=1.0 if share else None,
    )


_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match")


def _items(found: dict[str, Any], task: str) -> int:
    """Items scored in a task, or in all tasks of a group."""
    counted = found["n-samples"]
    members = found.get("group_subtasks", {}).get(task, [])
    if task in counted:
        return int(counted[task]["effective"])
    return sum(_items(found, member) for member in members)


def _check(tasks: Sequence[str], shots: int | None, limit: int | None, include: Path | None) -> None:
    if find_spec("lm_eval") is None:
        raise RunError(MISSING)
    if not tasks:
        raise RunError("name a task of lm-eval, such as pubmedqa or medmcqa")
    if shots is not None and shots < 0:
        raise RunError(f"shots must be 0 or more, got {shots}")
    if limit is not None and limit < 1:
        raise RunError(f"limit must be 1 or more, got {limit}")
    if include is not None and not include.is_dir():
        raise RunError(f"{include} is no folder; include is the folder in which the task files (YAML) are")


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """What knows the tasks; lm-eval's own are read, which takes seconds, only where one is asked for."""
    from lm_eval.tasks import TaskManager

    try:
        if include is not None:
            manager = TaskManager(include_path=str(include), include_defaults=False)
            if all(task in manager.all_tasks for task in tasks):
                return manager
        manager = TaskManager(include_path=None if include is None else str(include))
    except Exception as error:  # whatever is wrong in a file that is not ours
        raise DataError(f"lm-eval cannot read the task files in {include} ({type(error).__name__})") from None
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        where = "" if include is None else f", nor is it in {include}"
        raise DataError(f"lm-eval has no task {', '.join(unknown)}{where}; lm-eval ls tasks shows all")
    return manager


# ------------------------------------------------------------------------------------------------------ lm-eval, quiet


@contextmanager
def _unheard() -> Iterator[None]:
    """Keeps what lm-eval prints, logs and draws away from the terminal."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    alone = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork a process that holds a model
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone


class _Heard(Progress):
    """``progress``, heard where all else is not."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._out, self._err = progress, sys.stdout, sys.stderr

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """See `Progress.task`."""
        with redirect_stdout(self._out), redirect_stderr(self._err), self._progress.task(description, total) as task:
            yield task

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        with redirect_stdout(self._out), redirect_stderr(self._err):
            self._progress.say(message)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeds the streams of chance that tasks may draw from; they are as before when the block ends."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
