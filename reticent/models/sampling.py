"""Texts sampled from a model as it is."""

import torch

from reticent.errors import ModelError
from reticent.models.load import load

ROW = 32  # texts that are sampled at once
TRIES = 50  # rows without a new text before it is given up


def sample_texts(base: str, count: int, *, seed: int, temperature: float, max_new_tokens: int) -> list[str]:
    """``count`` different texts of the model ``base``, from nothing but the start of a text, at ``temperature``.

    Raises:
        ModelError: It cannot be loaded, or says the same again and again.
    """
    model, tokenizer = load(base)
    model.set_attn_implementation("sdpa")  # the one for packed rows reads no cache
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompt = torch.full((ROW, 1), int(start), device=model.device)
    found: dict[str, None] = {}
    tries = 0
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        while len(found) < count:
            drawn = model.generate(  # type: ignore[operator]  # a mixin's method that its stub does not know
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.eos_token_id,
            )
            before = len(found)
            texts = tokenizer.batch_decode(drawn[:, 1:], skip_special_tokens=True)
            found |= {text.strip(): None for text in texts if text.strip()}
            tries = 0 if len(found) > before else tries + 1
            if tries == TRIES:
                raise ModelError(f"{base} gave only {len(found)} different texts of {count}; ask for fewer")
    return list(found)[:count]
