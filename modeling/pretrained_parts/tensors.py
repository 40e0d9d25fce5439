"""Collect, name and compare the tensors of a pretrained part."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from hf_any3d.modeling.layers.forward_contract import is_sharded

CHECKSUM_PREFIX = "tensors-sha256:"


@dataclasses.dataclass(frozen=True)
class OwnTensor:
    """A tensor that a module had before adapters were added.

    Args:
        name: Name before adapters were added.
        path: Current name.
        tensor: A parameter or a buffer of the state dict.
    """

    name: str
    path: str
    tensor: torch.Tensor


def own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a model had before adapters were added, with their original names.

    Args:
        module: A model or submodule.
        name: Its own name, the prefix of its submodules' names.
    """
    for own_name, _, own in _own_modules(module, name, name):
        yield own_name, own


def own_tensors(module: nn.Module) -> Iterator[OwnTensor]:
    """Yield the parameters and persistent buffers from before adapters were added, tied ones under each name."""
    for name, path, owner in _own_modules(module, "", ""):
        for key, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and key not in owner._non_persistent_buffers_set:
                yield OwnTensor(f"{name}.{key}" if name else key, f"{path}.{key}" if path else key, tensor.detach())


def own_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's state dict as it would be without adapters."""
    return {own.name: own.tensor for own in own_tensors(module)}


def merged_adapters(module: nn.Module) -> list[str]:
    """Return the names of adapters that are merged into the weights by PEFT's `merge_adapter`."""
    return sorted({name for part in module.modules() for name in vars(part).get("merged_adapters", ())})


def tensors_checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute a checksum of weights that does not depend on files and shards.

    Args:
        tensors: By name.

    Returns:
        `"tensors-sha256:"` and 64 hex digits: the SHA-256 of the lines `name dtype shape` and the bytes of each tensor
        in the order of their names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for each in inner_tensors(tensor) or [tensor]:
            digest.update(_bytes(each))
    return f"{CHECKSUM_PREFIX}{digest.hexdigest()}"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Hashes of the tensors of a pretrained part when it was loaded, to detect changes.

    Torch's version counters do not detect what PEFT writes through `.data`.

    Args:
        digests: Dtype and a fast hash of the bytes of each tensor.
    """

    digests: dict[str, tuple[torch.dtype, str]]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
        """Hash tensors; those that are not available locally (offloaded, sharded) are skipped."""
        return cls({name: (tensor.dtype, _fast_hash(tensor)) for name, tensor in tensors.items() if is_local(tensor)})

    def is_in_other_precision(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Return whether a tensor has another dtype than when it was loaded, so that hashes cannot be compared."""
        return any(name in self.digests and self.digests[name][0] != each.dtype for name, each in tensors.items())

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the sorted names of changed tensors, which must have their original precision."""
        return sorted(
            name
            for name, tensor in tensors.items()
            if is_local(tensor) and self.digests.get(name) != (tensor.dtype, _fast_hash(tensor))
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


def not_finite(module: nn.Module) -> list[str]:
    """Return the sorted names of weights and running statistics with NaN, infinity or a negative variance."""
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if ".running_" in name]
    wrong = {name for name, tensor in (*module.named_parameters(), *buffers) if not _is_finite(tensor.detach())}
    wrong |= {name for name, b in buffers if name.endswith(".running_var") and is_local(b) and bool((b < 0).any())}
    return sorted(wrong)


def _own_modules(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, str, nn.Module]]:
    # PEFT's layers keep the replaced layer under the first name, its `modules_to_save` wrappers under the second.
    for inside in ("base_layer", "original_module"):
        if module._modules.get(inside) is not None:
            yield from _own_modules(module._modules[inside], name, f"{path}.{inside}" if path else inside)
            return
    yield name, path, module
    for child_name, child in module.named_children():
        yield from _own_modules(
            child, f"{name}.{child_name}" if name else child_name, f"{path}.{child_name}" if path else child_name
        )


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a quantized weight of torchao holds, such as bits and scales; none for any other."""
    if is_sharded(tensor) or not hasattr(tensor, "__tensor_flatten__"):
        return []
    inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return [each for each in inner if isinstance(each, torch.Tensor)]


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not is_local(tensor):
        return True
    if inner := inner_tensors(tensor):
        return all(map(_is_finite, inner))
    # A finite sum has finite terms and takes one pass; an infinite sum may be an overflow.
    return bool(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).isfinite()) or bool(
        tensor.isfinite().all()
    )


def _fast_hash(tensor: torch.Tensor) -> str:
    if inner := inner_tensors(tensor):
        return " ".join(map(_fast_hash, inner))
    import xxhash  # here, since models whose weights are all their own need none

    # With the shape, since bytes do not tell (2, 3) from (3, 2).
    digest = xxhash.xxh3_128(f"{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().as_subclass(torch.Tensor)  # quantized parameters override .cpu()
    # As bytes, since numpy has no bfloat16.
    return memoryview(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
