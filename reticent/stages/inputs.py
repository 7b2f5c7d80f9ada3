"""What several stages need of a run: its records as tokens, its plan, its models."""

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from reticent.data.encode import Encoder, encode
from reticent.data.record import Record
from reticent.privacy.clipping import Quantile
from reticent.privacy.plan import Plan, banded_plan, dpsgd_plan, nonprivate_plan
from reticent.recipe import DPMF, DPSGD, NonPrivate, Private, Recipe, Train
from reticent.run import ModelName, Run
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel

AnyModel = Literal["base", "twin", "private"]


def trained_models(recipe: Recipe) -> list[ModelName]:
    """The models that the recipe trains, in order."""
    if not isinstance(recipe.privacy, Private):
        return ["twin"]
    return ["twin", "private"] if recipe.audit.twin else ["private"]


def all_models(recipe: Recipe) -> list[AnyModel]:
    """The base model and the trained ones: what is audited and evaluated."""
    return ["base", *trained_models(recipe)]


def plan_for(recipe: Recipe, name: ModelName, units: int) -> Plan:
    """The plan of one model over ``units`` units; the twin's draws the same kind of batches without a promise."""
    return _plan(recipe.privacy, recipe.train, name, units)


@cache  # because calibrating the noise takes seconds
def _plan(privacy: NonPrivate | DPSGD | DPMF, train: Train, name: ModelName, units: int) -> Plan:
    asked: dict[str, Any] = {
        "unit": privacy.unit,
        "units": units,
        "batch_size": train.batch_size,
        "steps": train.steps,
    }
    if name == "twin":
        return nonprivate_plan(**asked)
    assert isinstance(privacy, Private)
    asked |= privacy.model_dump(include={"delta", "clip_norm", "clip_style", "epsilon", "noise_multiplier"})
    if isinstance(privacy, DPMF):
        return banded_plan(**asked, bands=privacy.bands)
    assert isinstance(privacy, DPSGD)
    follow = privacy.clip_quantile
    return dpsgd_plan(**asked, quantile=None if follow is None else Quantile(**follow.model_dump()))


def public_name(base: str) -> str:
    """The base model as others may know it: of a local folder only its name."""
    return Path(base).name if Path(base).is_absolute() else base


def encoder(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    """Makes tokens of records as the recipe says they are learned."""
    return Encoder(
        tokenizer,
        template=recipe.data.template,
        train_on_prompt=recipe.data.train_on_prompt,
        max_tokens=recipe.data.max_tokens,
        long_records=recipe.data.long_records,
    )


def encode_answer(recipe: Recipe, prompt: str, completion: str, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """One completion, encoded as it would have been learned; only the completion counts. Never split."""
    (tokens,) = encode(
        prompt,
        completion,
        tokenizer,
        template=recipe.data.template,
        train_on_prompt=False,
        max_tokens=2**20,
        long_records="cut",
    )
    return tokens


class HeldOut(NamedTuple):
    """Records never trained on."""

    records: list[Record]
    owners: list[str]


def held_out(run: Run) -> HeldOut:
    """The held-out records, or a sample of them if the recipe limits their number."""
    limit, count = run.recipe.evaluate.limit, run.read_manifest()["records"]["held_out"]
    keep = None
    if limit is not None and limit < count:
        keep = set(random.Random(run.recipe.data.seed).sample(range(count), limit))
    rows = run.read_records("held_out", keep)
    return HeldOut([record for record, _ in rows], [unit for _, unit in rows])


def open_model(run: Run, name: AnyModel) -> "CausalModel":
    """A model of the run, to be measured: in float32, its adapter merged, whatever it was trained in."""
    from reticent.models.adapter import load_trained
    from reticent.models.language_model import CausalModel
    from reticent.models.load import load

    base = run.recipe.model.base
    model = (load(base) if name == "base" else load_trained(base, run.model_folder(name), merge=True)).model
    return CausalModel(model)
