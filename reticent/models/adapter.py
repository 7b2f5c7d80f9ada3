"""What is trained: LoRA adapters (PEFT) or every weight; saved and loaded strictly."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from reticent.errors import ModelError
from reticent.models.load import Loaded, load


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str] | str,
    seed: int,
    freeze_a: bool = False,
) -> PeftModel:
    """``model`` with float32 adapters whose B is zero: the model is unchanged until trained.

    ``freeze_a``: only B is trained, so that the mean of several adapters is exact (FFA-LoRA, Sun et al. 2024).

    Raises:
        ModelError: no layer has one of the ``targets`` as its name.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an outdated way
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft mends it itself
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config)
        except ValueError:
            raise ModelError(
                f"model.adapter.targets {targets} fit no linear layer of {type(model).__name__}. Use all-linear, or "
                "the names that its layers have."
            ) from None
    assert isinstance(wrapped, PeftModel)
    for name, parameter in wrapped.named_parameters() if freeze_a else ():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return wrapped


def train_everything(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` in float32 with every weight trainable."""
    model.float()
    model.requires_grad_(True)
    return model


def recompute_layers(model: PreTrainedModel) -> None:
    """Gradient checkpointing: layers are computed again on the way back instead of kept, for less memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the method got another name between versions
        model.gradient_checkpointing_enable({"use_reentrant": False})


def save(model: PreTrainedModel | PeftModel, folder: Path, *, base: str) -> None:
    """The adapter, or the whole model, as safetensors. What is written names ``base``, not where it lies here."""
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base
        # Without False, peft asks the hub whether the vocabulary grew.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's own: it says where the base lies on this machine
        return
    model.save_pretrained(str(folder))


def load_trained(base: str, folder: Path, *, dtype: str = "float32", merge: bool = False) -> Loaded:
    """The fine-tuned model that `save` wrote to ``folder``, in evaluation mode; ``merge`` adds the adapter to
    the weights.

    Raises:
        ModelError: ``folder`` does not hold it, or holds an adapter of another model than ``base``.
    """
    if not is_adapter(folder):
        return load(str(folder), dtype=dtype, tokenizer=base)
    _refuse_other_base(base, folder)
    loaded = load(base, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("error", message="Found missing adapter keys")  # never a silently empty adapter
        try:
            model = PeftModel.from_pretrained(loaded.model, str(folder))
        except (OSError, RuntimeError, UserWarning, ValueError) as error:
            raise ModelError(
                f"the folder {folder} does not hold a whole adapter of {base} ({type(error).__name__}). Train it "
                "again, or set model.base to the model that it was trained on."
            ) from None
    if merge:
        return Loaded(model.merge_and_unload().eval(), loaded.tokenizer)
    return Loaded(model.eval(), loaded.tokenizer)  # type: ignore[arg-type]  # PeftModel forwards everything to the model


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter; otherwise whole weights."""
    return (folder / "adapter_config.json").is_file()


def _refuse_other_base(base: str, folder: Path) -> None:
    """An adapter loads on any model of the same shape, and gives nonsense there."""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{folder / 'adapter_config.json'} cannot be read or does not name its base model. Train the adapter "
            "again, or put the file back."
        ) from None
    if named is not None and _last(str(named)) != _last(base):
        raise ModelError(
            f"the adapter in {folder} was trained on {named}, and model.base is {base}. Set model.base to {named}, or "
            "train an adapter of this base."
        )


def _last(base: str) -> str:
    """A model without where it lies on a machine: `save` is told no more of a local folder than its name."""
    return Path(base).name if Path(base).is_absolute() else base
