"""What no engine can make exact, refused by name."""

import torch
from torch import nn

from reticent.errors import ModelError

_HALF = (torch.float16, torch.bfloat16)


def refuse_inexact(model: nn.Module) -> None:
    """Refuses models in which one record changes the gradient of another, or whose gradients are not their own.

    Raises:
        ModelError: the layer or parameter is named.
    """
    for name, module in model.named_modules():
        what = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(
            module, nn.modules.instancenorm._InstanceNorm
        ):
            raise ModelError(
                f"{what} mixes the records of a batch: it has no exact per-unit gradient, so no privacy promise can be "
                "kept. Use a model with LayerNorm or RMSNorm."
            )
        if module._compiled_call_impl is not None or isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            raise ModelError(
                f"{what} is compiled, so its layers cannot hand over the gradients of each unit. Give the model before "
                "torch.compile."
            )
        if module._backward_hooks or module._backward_pre_hooks:
            raise ModelError(
                f"{what} has a backward hook of another tool, which could change gradients after they are clipped. "
                "Remove the hook, or load the model afresh."
            )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype in _HALF:
            raise ModelError(
                f"{name} is trained in {str(parameter.dtype).removeprefix('torch.')}, in which small updates and the "
                "noise's digits are lost. Keep trained weights in float32; the frozen base may be in half precision."
            )
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks or hasattr(parameter, "grad_sample"):
            raise ModelError(
                f"{name} carries a gradient hook of another tool, which could change gradients after they are clipped. "
                "Remove the hook, or load the model afresh."
            )
