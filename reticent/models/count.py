"""How large a model is, and how much of it was trained."""

from typing import NamedTuple

from torch import nn


class Size(NamedTuple):
    """Numbers that a model consists of: ``whole`` without adapters, ``adapter`` those of its adapters; ``trained`` is
    the adapter, or everything where there is none. Tied weights count once."""

    whole: int
    adapter: int

    @property
    def trained(self) -> int:
        """Numbers that fine-tuning made."""
        return self.adapter or self.whole

    @property
    def share(self) -> float:
        """``trained`` over ``whole``."""
        return self.trained / self.whole


def size(model: nn.Module) -> Size:
    """Counted exactly, from the shapes alone: a model on the meta device will do."""
    adapter = sum(one.numel() for name, one in model.named_parameters() if _of_adapter(name))
    return Size(sum(one.numel() for one in model.parameters()) - adapter, adapter)


def extent(model: nn.Module) -> tuple[float, float]:
    """The least and the largest of the trained numbers."""
    found = {name: one.detach() for name, one in model.named_parameters()}
    trained = [one for name, one in found.items() if _of_adapter(name)] or list(found.values())
    return min(float(one.min()) for one in trained), max(float(one.max()) for one in trained)


def _of_adapter(name: str) -> bool:
    return ".lora_" in name
