"""Weights that are read without a call of their module, wherever accelerate, FSDP2 or quantization keeps them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def onloaded(*modules: nn.Module) -> Iterator[None]:
    """Load the modules' own weights if accelerate keeps them on the CPU or on disk, or FSDP2 has sharded them.

    Both load a module's weights when the module is called. Weights that are read without a call, such as a position
    table, must be read inside this context; results computed from them remain valid after it.
    """
    # accelerate leaves empty tensors on "meta" until its hook has run.
    offloaded = [
        module
        for module in modules
        if hasattr(module, "_hf_hook") and any(own is not None and own.is_meta for own in module._parameters.values())
    ]
    sharded = [
        (module, name, own)
        for module in modules
        for name, own in module._parameters.items()
        if own is not None and is_sharded(own)
    ]
    for module in offloaded:
        module._hf_hook.pre_forward(module)
    for module, name, own in sharded:
        # Past `__setattr__`, which takes only `nn.Parameter`: a gathered weight is the result of an operation.
        module._parameters[name] = gathered(own)  # pyright: ignore[reportArgumentType] a tensor with a gradient function
    try:
        yield
    finally:
        for module, name, own in sharded:
            module._parameters[name] = own
        for module in offloaded:
            module._hf_hook.post_forward(module, torch.empty(0))


def is_sharded(weight: torch.Tensor) -> bool:
    """Return whether FSDP2 has sharded a weight, which is gathered only while its layer runs."""
    return hasattr(weight, "full_tensor")


def gathered(weight: torch.Tensor) -> torch.Tensor:
    """Gather a weight that FSDP2 has sharded; its gradient is averaged over the processes, as FSDP2 does.

    All processes must call this.
    """
    from torch.distributed.tensor import Partial

    sharded = cast("DTensor", weight)
    mesh = sharded.device_mesh
    # Each process has the gradient of its own batch: a summand of the full one. DTensor adds them up, FSDP2 takes the
    # mean.
    full = sharded.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda gradient: gradient / mesh.size())
    return full


def with_gathered_weights(module: Module, dtype: torch.dtype) -> Module:
    """Return a module of a layer that runs at another time, with its weights in `dtype` if FSDP2 has sharded them.

    FSDP2 gathers the weights of a layer only while that layer runs. The copy is shallow: the module keeps its shards.
    """
    if not any(is_sharded(parameter) for parameter in module.parameters()):
        return module
    copied = copy.copy(module)
    copied._parameters = {name: gathered(weight).to(dtype) for name, weight in module.named_parameters()}
    return copied


def is_unmodified(*modules: nn.Module) -> bool:
    """Return whether a parent may read the weights of these layers and norms instead of calling them.

    False if an adapter or a quantized layer replaces one of them, if its weight is quantized, if hooks are registered,
    or if accelerate loads weights at each call: then they must be called.
    """
    # Exact classes, since layers of adapters and of quantization are often subclasses.
    return all(
        type(module) in (nn.Linear, nn.BatchNorm1d, nn.GroupNorm)
        and has_no_hooks(module)
        # torchao leaves the layer as it is; its weight is a tensor that holds others.
        and not any(hasattr(weight, "__tensor_flatten__") for weight in module._parameters.values())
        for module in modules
    )


def keep_unpacked(model: nn.Module) -> None:
    """Let the 4-bit layers of bitsandbytes inside a model keep the form of their weights that they are loaded in.

    On some CPUs they pack them at the first call in eval mode. Packed layers pass no gradient, although frozen layers
    may be in eval mode while layers before them are trained; and they refuse the widths of layers that read points,
    such as three inputs.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def has_no_hooks(module: nn.Module) -> bool:
    """Return whether nothing else runs when a module is called."""
    # accelerate replaces `forward` on the instance instead of registering a hook.
    return not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
