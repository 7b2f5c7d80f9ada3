"""What several stages need of a run: its records as tokens, its models."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from reticent.asked import trained_models
from reticent.data.encode import Encoder
from reticent.data.record import Record
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.models.language_model import CausalModel

AnyModel = Literal["base", "twin", "private"]


def all_models(recipe: Recipe) -> list[AnyModel]:
    """The base model and the trained ones: what is audited and evaluated."""
    return ["base", *trained_models(recipe)]


def encoder(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    """Makes tokens of records as the recipe says they are learned."""
    return Encoder(
        tokenizer,
        template=recipe.data.template,
        train_on_prompt=recipe.data.train_on_prompt,
        max_tokens=recipe.data.max_tokens,
        long_records=recipe.data.long_records,
    )


def encode_answers(
    recipe: Recipe, answers: Sequence[tuple[str, str]], tokenizer: "PreTrainedTokenizerBase"
) -> list[Tokens]:
    """Prompts with completions, encoded as they would have been learned; only completions count. Never split."""
    encode = Encoder(
        tokenizer, template=recipe.data.template, train_on_prompt=False, max_tokens=2**20, long_records="cut"
    )
    return encode(answers).tokens


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
