"""A trained model for others: written, loaded again, compared and described; and sent to a hub if asked."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from reticent import recipe as recipes
from reticent.asked import public_name, trained_models
from reticent.errors import PrivacyError, RunError
from reticent.progress import SILENT, Progress
from reticent.run import ModelName, Run
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from reticent.models.export import Exported

Kind = Literal["adapter", "merged"]
Rows = list[tuple[str, str]]

_RECORDS: Final = 16  # held-out records whose perplexity is compared
_LONG: Final = 12  # characters from which on a canary's text is looked for in what is written
_MEND: Final = "look for it in the names that the recipe gives (model.base, benchmarks)"


def export(
    run: Run,
    to: Path,
    *,
    model: ModelName = "private",
    kind: Kind | None = None,
    push: str | None = None,
    progress: Progress = SILENT,
) -> Rows:
    """Writes a trained model of the run with its tokenizer and card to the folder ``to``; (label, value) rows on it.

    What is written is loaded again without this package and compared with the run's model before it takes its place.

    Args:
        to: a new or empty folder.
        kind: "adapter", "merged" (whole weights); None: an adapter, if the run has one.
        push: a repository of the Hugging Face hub, as "somebody/name", made private if it does not exist.

    Raises:
        RunError: the run has no such model, or ``to`` is in use or cannot be written.
        ModelError: what was written is not the run's model, or could not be sent; without the first nothing is kept.
        PrivacyError: a check of the training failed, a model without a promise would leave this machine, or what was
            written would give away private text or a place on this machine.
    """
    _refuse(run, model, push)
    target = _free(to)
    from reticent.models.adapter import is_adapter
    from reticent.models.hub import Repository
    from reticent.reports.card import card
    from reticent.stages import model_card

    repository = None if push is None else Repository(push)  # asked before anything long begins
    trained = run.model_folder(model)
    kind = kind or ("adapter" if is_adapter(trained) else "merged")
    with _beside(target) as folder, progress.task("exporting", total=2) as task:
        exported = _written(run, trained, folder, kind)
        task.advance()
        rows = model_card.artefact(exported, folder)
        facts = model_card.facts(run, model, exported, rows, push)
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
        _refuse_private(run, folder, target)
        task.advance()
    rows = [("exported", f"{model_card.called(run, model)}, {kind}, to {to}"), *rows, ("card", str(to / "README.md"))]
    if kind == "merged":
        rows.append(("GGUF", model_card.gguf(str(to))))
    if repository is not None:
        rows.append(("pushed", repository.push(target)))
    return rows


# ------------------------------------------------------------------------------------------------------------ refusals


def _refuse(run: Run, model: ModelName, push: str | None) -> None:
    from reticent.stages.report import broken

    if not run.finished("train"):
        raise RunError(f"{run.folder} has no trained model to export; train it first: reticent train {run.folder}")
    if model not in trained_models(run.recipe):
        if model == "private":
            raise RunError(
                f"{run.folder} was trained without a promise, so it has no private model; --model twin exports what it "
                "has, for those who may read the training text"
            )
        raise RunError(f"{run.folder} has no twin (audit.twin: false); export its private model")
    if model == "private" and (failed := broken(run)):
        raise PrivacyError(
            f"the training did not do what its promise counts on (failed: {', '.join(failed)}), so the model is not "
            f"exported as private; find the cause with `reticent doctor {run.folder}`, mend it, and train again with "
            f"`reticent run {run.folder} --again`"
        )
    if model == "twin" and push is not None:
        raise PrivacyError(
            "the twin promises nothing and may recite its training text, so it is not sent anywhere; leave out --push, "
            "or export the private model"
        )


def _free(to: Path) -> Path:
    """Where to write: nothing may be there yet."""
    target = to.resolve()
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise RunError(f"cannot read {to}: {error.strerror}; name another folder with --to") from None
    if taken:
        raise RunError(f"{to} is not empty and is not overwritten; name another folder with --to, or remove it")
    return target


def _refuse_private(run: Run, folder: Path, target: Path) -> None:
    """Looks through what was written for canaries and places on this machine; the tokenizer is the base's own."""
    places = {str(path) for path in _places(run, target) if len(path.parts) > 1}
    told: set[str] = set()
    if run.finished("prepare"):
        from reticent.data import canary

        records = [one.record for one in canary.from_json(run.read_canaries())]
        told = {text.strip() for record in records for text in (record.prompt, record.completion)}
    told = {text for text in told if len(text) >= _LONG}
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".md", ".json") or path.name == "tokenizer.json":
            continue
        text = path.read_text(encoding="utf-8")
        if any(place in text for place in places):
            raise PrivacyError(f"{path.name} would name a folder of this machine, so nothing was exported; {_MEND}")
        if any(secret in text for secret in told):
            raise PrivacyError(f"{path.name} would hold text of a canary, so nothing was exported; {_MEND}")


def _places(run: Run, target: Path) -> Iterator[Path]:
    values = run.recipe.model_dump(mode="json")
    named = [Path(holder[key]) for holder, key in recipes.paths(values)]
    base = Path(run.recipe.model.base)
    for path in (run.folder.resolve(), target, target.parent, Path.home(), *named, base):
        if path.is_absolute():
            yield path


# ------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` when the block ends well, and goes otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
        try:
            yield folder
            mask = os.umask(0)
            os.umask(mask)
            folder.chmod(0o777 & ~mask)
            for path in folder.iterdir():
                path.chmod(0o666 & ~mask)  # safetensors' own are for the user alone
            folder.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(f"cannot write {target}: {reason}; make room or name another folder with --to") from None
    except Exception as error:
        # safetensors reports a full disk by an error of its own.
        if type(error).__name__ != "SafetensorError":
            raise
        raise RunError(f"cannot write {target}: is the disk full? Make room or name another folder with --to") from None


def _written(run: Run, trained: Path, folder: Path, kind: Kind) -> "Exported":
    from reticent.models import export as exporting

    base = run.recipe.model.base
    return exporting.export(base, trained, folder, name=public_name(base), kind=kind, texts=_sample(run))


def _sample(run: Run) -> list[Tokens]:
    """Held-out records as tokens; none where there are none, as at the coordinator of a federation."""
    if not run.finished("prepare"):
        return []
    from reticent.models.load import load_tokenizer
    from reticent.stages.inputs import encoder

    rows = run.read_records("held_out", range(_RECORDS))
    encode = encoder(run.recipe, load_tokenizer(run.recipe.model.base))
    return encode([(record.prompt, record.completion) for record, _ in rows]).tokens[:_RECORDS]
