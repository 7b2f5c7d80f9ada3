"""What the card of an exported model says, from the run's own files: counts, settings and measurements."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from reticent.asked import federated, public_name
from reticent.recipe import Lora, Private, Recipe, Source
from reticent.run import ModelName, Run

if TYPE_CHECKING:
    from reticent.models.export import Agreement, Exported
    from reticent.reports.answers import Line
    from reticent.reports.card import Facts, Finding
    from reticent.reports.report import Guarantee

Rows = list[tuple[str, str]]

_BUNDLED: Final = ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")  # what the bundled base was made from
_PACKAGES: Final = ("reticent", "torch", "transformers", "peft", "safetensors", "dp-accounting")


def called(run: Run, model: ModelName) -> str:
    """The model in words."""
    if model == "private":
        return "private model"
    return "non-private twin" if run.recipe.promises else "model without a promise"


def gguf(folder: str) -> str:
    """The command that makes one GGUF file of merged weights."""
    return f"python llama.cpp/convert_hf_to_gguf.py {folder} --outfile model.gguf --outtype auto"


def artefact(exported: "Exported", folder: Path) -> Rows:
    """What was written, in numbers, and how it was compared."""
    from reticent.reports.table import number, size

    files = [path.stat().st_size for path in folder.iterdir()]
    whole, trained = exported.size.whole, exported.size.trained
    low, high = exported.extent
    share = f"{trained:,} in an adapter, {exported.size.share:.3%} of them" if exported.size.adapter else "all"
    rows = [
        ("parameters", f"{whole:,} ({size(2 * whole)} in bfloat16)"),
        ("trained", f"{share}; values from {low:.3g} to {high:.3g}"),
        ("stored as", exported.dtype),
        ("size on disk", f"{size(sum(files))} in {len(files)} files"),
        ("loaded again", _agreement(exported.exact)),
    ]
    if exported.lost is not None:
        rows.append((f"rounded to {exported.dtype}", _lost(exported.lost, exported.tuned)))
    if exported.rounded is not None:
        rows.append((f"computed in {exported.dtype}", _rounded(exported.rounded)))
    if exported.perplexity is not None:
        ours, theirs = exported.perplexity
        told = f"{number(theirs)}, in the run {number(ours)} ({exported.texts} held-out texts)"
        rows.append(("perplexity when loaded again", told))
    return rows


def _agreement(found: "Agreement") -> str:
    from reticent.models.export import RMS
    from reticent.reports.table import small

    equal = f"equal within {small(found.rms)} of their size" if found.rms else "the same"
    return (
        f"by transformers alone, logits are {equal} in float32 (allowed: {small(RMS)}) at {found.positions} positions "
        "of public texts and random tokens"
    )


def _lost(lost: float, tuned: float | None) -> str:
    """A fine-tuning that moves weights by less than they are rounded by does not survive it."""
    from reticent.reports.table import small

    told = f"changes the logits by {small(lost)} of their size"
    if tuned is None:
        return told
    advice = "; the adapter has all of it" if 10 * lost > tuned else ""
    return f"{told}; fine-tuning changed them by {small(tuned)}{advice}"


def _rounded(found: "Agreement") -> str:
    return (
        f"the likeliest token is the same at {found.same:.0%} of these positions, the next token diverges by "
        f"{found.divergence:.2g} nats on average"
    )


def facts(run: Run, model: ModelName, exported: "Exported", rows: Rows, push: str | None) -> "Facts":
    """All that the card says; ``rows`` are those of `artefact`, ``push`` the repository that it goes to."""
    from reticent.models import bundled
    from reticent.reports.card import Facts

    recipe = run.recipe
    base = public_name(recipe.model.base)
    ours = recipe.model.base == bundled.NAME
    base_id, license = _BUNDLED if ours else (_on_hub(recipe.model.base), None)
    name = (
        push.rpartition("/")[2] if push else f"{base.rpartition('/')[2]}-{'private' if model == 'private' else 'twin'}"
    )
    nothing: Guarantee = {"epsilon": None, "delta": None, "unit": recipe.privacy.unit}
    guarantee = run.facts("train").get("guarantee", nothing) if model == "private" else nothing
    shown = f"{base_id}, as 4-bit weights made float32 again (bundled/smollm2-135m)" if ours else base
    return Facts(
        title=f"{base.rpartition('/')[2]}, fine-tuned {'privately' if model == 'private' else 'without privacy'}",
        name=name,
        model=model,
        control=recipe.promises and model == "twin",
        kind=exported.kind,
        tags=_tags(recipe, model),
        base=shown,
        base_id=base_id,
        license=license,
        datasets=_datasets(recipe),
        guarantee=cast("Guarantee", guarantee),
        leaks=_leaks(run, model),
        findings=_findings(run, model),
        measurements=run.read_measurements("evaluate") if run.finished("evaluate") else None,
        data=_data(run),
        training=_training(run),
        artefact=rows,
        provenance=_provenance(run),
        load=_load(exported.kind, base_id if not ours and base_id else base, push, ours),
        gguf=gguf("FOLDER") if exported.kind == "merged" else None,
    )


def _on_hub(base: str) -> str | None:
    """Its name on the hub; None for a folder."""
    return None if Path(base).is_absolute() or Path(base).exists() else base


def _tags(recipe: Recipe, model: ModelName) -> list[str]:
    tags = ["reticent"]
    if model == "private":
        tags += ["differential-privacy"]
        tags += [recipe.privacy.kind] if isinstance(recipe.privacy, Private) else []
        tags += ["dp-fedavg"] if recipe.federation is not None and recipe.federation.privacy is not None else []
    tags += ["lora"] if isinstance(recipe.model.adapter, Lora) else []
    return tags + (["federated-learning"] if federated(recipe) is not None else [])


def _sources(recipe: Recipe) -> list[Source]:
    source = recipe.data.source
    if isinstance(source, str):
        return []
    return [source] if isinstance(source, Source) else list(source)


def _datasets(recipe: Recipe) -> list[str]:
    """Hub names of the catalog's data sets, which are public; any other name may tell whose text it is."""
    from reticent.data import catalog

    found = [catalog.get(one.name).hub for one in _sources(recipe) if one.name is not None]
    return sorted({hub for hub in found if hub is not None})


def _leaks(run: Run, model: ModelName) -> list[str]:
    """What the audit demonstrated on this model; where there is a private one, the twin has no verdicts."""
    from reticent.stages.report import failing

    if not run.finished("audit") or (model == "twin" and run.recipe.promises):
        return []
    return failing(run, "leak")


def _findings(run: Run, model: ModelName) -> "list[Finding] | None":
    from reticent.reports.card import Finding
    from reticent.stages.report import findings

    if not run.finished("audit"):
        return None
    lines = [line for line in findings(run) if line.verdict is not None]
    if model == "twin" and run.recipe.promises:
        return [Finding(line.text, line.twin, "none: it is what tests are tried on") for line in lines if line.twin]
    return [Finding(line.text, _measured(line), line.verdict.text) for line in lines if line.verdict is not None]


def _measured(line: "Line") -> str:
    """The number, what was counted, and the bad end of its interval."""
    basis = ", ".join(filter(None, (line.basis, line.worst and f"at worst {line.worst}")))
    return f"{line.measured} ({basis})" if line.measured and basis else line.measured


# ------------------------------------------------------------------------------------------------------- data, training


def _data(run: Run) -> Rows:
    from reticent.reports.table import redaction

    rows = [("source", _source(run.recipe))]
    if not run.finished("prepare"):
        return [*rows, ("counts", "unknown here: the sites of the federation keep them")]
    manifest = run.read_manifest()
    unit = run.recipe.privacy.unit
    for part, label in (("train", "trained on"), ("held_out", "held out")):
        rows.append((label, f"{manifest['records'][part]:,} records of {manifest['units'][part]:,} {unit}s"))
    rows.append(("tokens trained on", f"{manifest['tokens']:,}"))
    canaries = manifest["canaries"]
    planted = canaries["secrets_planted"] + canaries["members_planted"]
    if planted:
        rows.append(("of these invented", f"{planted:,} canaries, planted so that leaks can be measured"))
    if near := manifest.get("near_duplicates"):
        rows.append(("nearly equal texts", f"{near:,}, counted as one {unit} each"))
    if told := redaction({"data": manifest}):  # type: ignore[typeddict-item]  # of a report it reads only this part
        rows.append(("redacted before training", " ".join(told)))
    if sites := len(run.silos()):
        rows.append(("held by", f"{sites} sites"))
    return rows


def _source(recipe: Recipe) -> str:
    if not _sources(recipe):
        return "invented patients and clinical coding questions (a generator)"
    kinds = []
    for one in _sources(recipe):
        if one.name is not None:
            kinds.append(f"{one.name}, a public data set")
        else:
            kinds.append("a data set of the hub that is not named here" if one.hub else "files that are not named here")
    return "; ".join(dict.fromkeys(kinds))


def _training(run: Run) -> Rows:
    recipe = run.recipe
    train, adapter = recipe.train, recipe.model.adapter
    rows = [("template", f"{recipe.data.template}, at most {recipe.data.max_tokens} tokens")]
    if isinstance(adapter, Lora):
        targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
        rows.append(("adapter", f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, on {targets}"))
    else:
        rows.append(("adapter", "none: every weight was trained"))
    rows += [
        ("steps", f"{train.steps:,} of {train.batch_size:,} expected {recipe.privacy.unit}s (Poisson batches)"),
        (
            "optimiser",
            f"{train.optimizer}, learning rate {train.learning_rate:g}, {train.schedule}, loss: {train.loss}",
        ),
        ("precision", f"frozen weights {recipe.model.quantize or recipe.model.dtype}, trained ones float32"),
    ]
    if (asked := federated(recipe)) is not None:
        rows.append(("federation", f"{asked.algorithm}, {asked.rounds} rounds, adapters joined by {asked.lora}"))
    return rows


def _provenance(run: Run) -> Rows:
    made = run.read_provenance()
    versions = ", ".join(f"{name} {made['packages'][name]}" for name in _PACKAGES if name in made["packages"])
    return [
        ("made with", versions),
        ("python", made["python"]),
        ("recipe, SHA-256", made["recipe"]),
        ("finished", made["time"]),
    ]


# ------------------------------------------------------------------------------------------------------------- loading


def _load(kind: Literal["adapter", "merged"], base: str, push: str | None, bundled: bool) -> str:
    """Python that loads the model."""
    where = push or "FOLDER"
    if kind == "merged":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{where}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{where}")'
        )
    note = "  # its folder: python -m reticent.models.bundled" if bundled else ""
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}"){note}\n'
        f'model = PeftModel.from_pretrained(base, "{where}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")'
    )
