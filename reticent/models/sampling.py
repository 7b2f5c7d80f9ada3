"""Texts sampled from a model as it is."""

import numpy as np

from reticent.errors import ModelError
from reticent.models.generation import sample
from reticent.models.language_model import CausalModel, Sampling
from reticent.models.load import load

ROW = 32  # texts that are sampled at once
TRIES = 50  # rows without a new text before it is given up


def sample_texts(base: str, count: int, *, seed: int, temperature: float, max_new_tokens: int) -> list[str]:
    """``count`` different texts of the model ``base``, from nothing but the start of a text, at ``temperature``.

    Raises:
        ModelError: It cannot be loaded, or says the same again and again.
    """
    model, tokenizer = load(base)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompt = np.array([int(start)])
    rows, before = -(-count // ROW), -1
    while True:  # twice as many rows begin with the same ones
        drawn = sample(
            CausalModel(model),
            [prompt] * (ROW * rows),
            sampling=Sampling(temperature, top_k=None),
            max_new_tokens=max_new_tokens,
            seed=seed,
            end_of_text=tokenizer.eos_token_id,
            batch=ROW,
        )
        texts = [str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip() for ids in drawn]
        found = list(dict.fromkeys(text for text in texts if text))
        if len(found) >= count:
            return found[:count]
        if len(found) == before and rows > TRIES:
            raise ModelError(f"{base} gave only {len(found)} different texts of {count}; ask for fewer")
        rows, before = 2 * rows, len(found)
