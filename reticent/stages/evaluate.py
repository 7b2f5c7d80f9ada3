"""Measure how useful each model is on records that no model was trained on."""

from typing import Literal

import numpy as np

from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import Run
from reticent.stages.inputs import all_models, encode_answers, encoder, held_out, open_model

Normalise = Literal["sum", "tokens"]
_WORDS: dict[Normalise, str] = {"sum": "of the whole text", "tokens": "per token"}


def scorers(recipe: Recipe) -> list[tuple[str, Normalise]]:
    """The accuracy that the recipe asks for, and beside it the one by the other way to score an option."""
    chosen = recipe.evaluate.normalise
    other: Normalise = "sum" if chosen == "tokens" else "tokens"
    return [("accuracy", chosen), (f"accuracy_by_{other}", other)]


def evaluate(run: Run, progress: Progress) -> None:
    """Writes perplexity and multiple-choice accuracy of each model."""
    from reticent.models.load import load_tokenizer
    from reticent.utility.choices import accuracy
    from reticent.utility.perplexity import perplexity

    recipe = run.recipe
    tokenizer = load_tokenizer(recipe.model.base)
    records, owners = held_out(run)
    texts = encoder(recipe, tokenizer)([(record.prompt, record.completion) for record in records])
    plain = texts.tokens if recipe.evaluate.perplexity else []
    questions = [record for record in records if record.options] if recipe.evaluate.choices else []
    answers = [(question.prompt, option) for question in questions for option in question.options]
    options = encode_answers(recipe, answers, tokenizer)
    measurements: list[Measurement] = []
    for name in all_models(recipe):
        scores = [score.logp for score in open_model(run, name).log_probs([*plain, *options], progress)]
        if plain:
            found = perplexity(
                scores[: len(plain)],
                [owner for owner, pieces in zip(owners, texts.pieces, strict=True) for _ in range(pieces)],
                rng=np.random.default_rng(recipe.data.seed),
            )
            measurements.append(
                Measurement(
                    name="perplexity",
                    model=name,
                    value=found.value,
                    interval=found.interval,
                    n=found.owners,
                    unit="perplexity",
                    counted="held-out owners",
                    method=f"{found.tokens:,} tokens, bootstrap over owners",
                )
            )
        if questions:
            left = iter(scores[len(plain) :])
            scored = [[next(left) for _ in question.options] for question in questions]
            right = [question.answer for question in questions if question.answer is not None]
            for label, normalise in scorers(recipe):
                chosen = accuracy(scored, right, normalise=normalise)
                measurements.append(
                    Measurement(
                        name=label,
                        model=name,
                        value=chosen.accuracy,
                        interval=chosen.interval,
                        n=chosen.n,
                        unit="share",
                        counted="held-out questions",
                        method=f"option log-likelihood, {_WORDS[normalise]}; Wilson",
                        floor=chosen.chance,
                        ceiling=1.0,
                    )
                )
    run.write_measurements("evaluate", measurements)
    run.finish("evaluate", {"records": len(records), "questions": len(questions)})
