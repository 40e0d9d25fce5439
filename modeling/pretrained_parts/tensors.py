"""Collect, name and compare the tensors of a pretrained part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from hf_any3d.modeling.layers.low_rank import INNER, LowRankLinear

CHECKSUM_PREFIX = "tensors-sha256:"
# Attribute of a part: dtype and a fast hash of the bytes of each tensor that it was loaded with.
_DIGESTS = "_opened_with"


class OwnModule(NamedTuple):
    """A module that a model had before adapters were added: its original name, and its current one."""

    name: str
    path: str
    module: nn.Module


class OwnTensor(NamedTuple):
    """A parameter or persistent buffer from before adapters were added: its original name, and its current one."""

    name: str
    path: str
    tensor: torch.Tensor


def own_modules(module: nn.Module, bare: bool = False) -> list[OwnModule]:
    """Return the modules that a model had before adapters were added, each before those inside it.

    With `bare`, also without LoRA that the model around a part has added to its layers: these are the modules that the
    part has in its own checkpoint.
    """
    modules = []
    stack = [OwnModule("", "", module)]
    while stack:
        name, path, module = stack.pop()
        # PEFT's layers keep the replaced layer under the first name, its `modules_to_save` wrappers under the second.
        inside = "base_layer" if module._modules.get("base_layer") is not None else "original_module"
        if bare and isinstance(module, LowRankLinear):
            inside = INNER
        if module._modules.get(inside) is not None:
            stack.append(OwnModule(name, f"{path}.{inside}" if path else inside, module._modules[inside]))
            continue
        modules.append(OwnModule(name, path, module))
        # The stack is emptied from its end, so that modules come in the model's own order.
        for child, submodule in reversed(module._modules.items()):
            if submodule is not None:
                names = (f"{name}.{child}" if name else child, f"{path}.{child}" if path else child)
                stack.append(OwnModule(*names, submodule))
    return modules


def own_tensors(module: nn.Module, bare: bool = False) -> list[OwnTensor]:
    """Return the parameters and persistent buffers of `own_modules`, tied ones under each name."""
    tensors = []
    for name, path, owner in own_modules(module, bare):
        for key, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and key not in owner._non_persistent_buffers_set:
                names = (f"{name}.{key}" if name else key, f"{path}.{key}" if path else key)
                tensors.append(OwnTensor(*names, tensor.detach()))
    return tensors


def own_state(module: nn.Module, bare: bool = False) -> dict[str, torch.Tensor]:
    """Return a module's state dict as it would be without adapters; see `own_modules`."""
    return {name: tensor for name, _, tensor in own_tensors(module, bare)}


def tensors_checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute a SHA-256 over the lines `name dtype shape` and the bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        _update(digest, tensor)
    return f"{CHECKSUM_PREFIX}{digest.hexdigest()}"


def remember_weights(part: nn.Module, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """Remember the weights that a part was loaded with, to detect changes when it is saved.

    Torch's version counters do not detect what PEFT writes through `.data`.
    """
    tensors = own_state(part) if tensors is None else tensors
    vars(part)[_DIGESTS] = {name: (each.dtype, _fast_hash(each)) for name, each in tensors.items() if is_local(each)}


def changed_since_loading(part: nn.Module, tensors: Mapping[str, torch.Tensor] | None = None) -> list[str] | None:
    """Return the sorted names of tensors that changed; None if their precision did, or nothing is remembered."""
    digests: dict[str, tuple[torch.dtype, str]] | None = vars(part).get(_DIGESTS)
    tensors = own_state(part) if tensors is None else tensors
    # Bytes of two precisions say nothing about each other.
    if digests is None or any(name in digests and digests[name][0] != each.dtype for name, each in tensors.items()):
        return None
    return sorted(
        name
        for name, tensor in tensors.items()
        if is_local(tensor) and digests.get(name) != (tensor.dtype, _fast_hash(tensor))
    )


def is_local(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has values here: it is not offloaded, no shard of a DTensor, not DeepSpeed's."""
    return tensor.device.type != "meta" and not hasattr(tensor, "full_tensor") and not hasattr(tensor, "ds_id")


def differing(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the sorted names of tensors that differ from those of the same name, compared in the dtype of `ours`."""
    return sorted(
        name
        for name, tensor in ours.items()
        if name not in theirs
        or is_local(tensor)
        and not torch.equal(theirs[name].to(tensor.device, tensor.dtype), tensor)
    )


def holds_tensors(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a quantized weight of torchao, which holds others, such as bits and scales."""
    return hasattr(tensor, "__tensor_flatten__") and not hasattr(tensor, "full_tensor")  # a shard flattens, too


def _fast_hash(tensor: torch.Tensor) -> str:
    import xxhash  # here, since models whose weights are all their own need none

    # With the shape, since bytes do not tell (2, 3) from (3, 2).
    digest = xxhash.xxh3_128(f"{tuple(tensor.shape)}".encode())
    _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensor: torch.Tensor) -> None:
    """Add the bytes of a tensor, or of those that it holds, to a digest."""
    tensors = [tensor]
    if holds_tensors(tensor):
        held = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        tensors = [each for each in held if isinstance(each, torch.Tensor)]
    for each in tensors:
        plain = each.detach().as_subclass(torch.Tensor)  # quantized parameters override .cpu()
        # As bytes, since numpy has no bfloat16.
        digest.update(memoryview(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
