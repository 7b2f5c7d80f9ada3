"""The recipe's canaries; those that need a model are sampled from it here."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reticent.data import canary
from reticent.errors import RecipeError
from reticent.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPERATURE = 1.0
TOKENS = 48  # of a text sampled from the base model
PROMPT = "Write a short note."


def canaries_of(recipe: Recipe, material: canary.Material) -> list[canary.Canary]:
    """The recipe's canaries, planted or held out.

    Raises:
        RecipeError: Too few candidates of a family for the membership test.
    """
    asked = recipe.data.canaries
    if asked is None:
        return []
    candidates: int | dict[canary.Family, int] = (
        asked.candidates if isinstance(asked.candidates, int) else dict(asked.candidates.items())
    )
    made = canary.make(
        pairs=asked.pairs,
        copies=asked.copies,
        candidates=candidates,
        digits=asked.digits,
        seed=recipe.data.seed,
        material=material,
    )
    for family in dict.fromkeys(one.family for one in made if one.role == "member"):
        coins = [one.planted for one in made if one.role == "member" and one.family == family]
        if recipe.audit.membership and min(sum(coins), len(coins) - sum(coins)) < 2:
            raise RecipeError(
                f"data.canaries.candidates = {len(coins)} gave {sum(coins)} planted and {len(coins) - sum(coins)} "
                f"held-out records ({family}); membership needs 2 of each. Raise it, or set audit.membership: false."
            )
    return made


def stand_in() -> canary.Material:
    """Material for canaries of which only the coins are wanted."""
    return canary.Material(
        sample=lambda count, seed: [str(i) for i in range(count)], tokens=[str(i) for i in range(10**4)]
    )


def material(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> canary.Material:
    """What the asked families are made from."""
    asked = recipe.data.canaries
    families = asked.candidates if asked is not None and isinstance(asked.candidates, dict) else {}
    return canary.Material(
        prompt=PROMPT if recipe.data.template == "chat" else "",
        sample=_sampler(recipe) if families.get("high-temperature") else None,
        tokens=_rare(tokenizer) if families.get("new-token") else (),
    )


def _sampler(recipe: Recipe) -> Callable[[int, int], Sequence[str]]:
    """Texts of the base model at `TEMPERATURE`."""

    def sample(count: int, seed: int) -> list[str]:
        from reticent.models.sampling import sample_texts

        return sample_texts(recipe.model.base, count, seed=seed, temperature=TEMPERATURE, max_new_tokens=TOKENS)

    return sample


def _rare(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The later half of the vocabulary, which the tokenizer learned last and texts use least, as texts.

    The data have no say: if they did, one person more or less would change the canaries, and no promise to that person
    would hold.
    """
    ids = range(len(tokenizer) // 2, len(tokenizer))
    texts = [str(tokenizer.decode([i])) for i in ids]
    return canary.unused_tokens(
        (text for text in texts if text.strip()),
        lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
        set(tokenizer.all_special_ids),
    )
