"""The tensors of a pretrained part: which they are, what they are called without adapters, whether they changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import torch
import xxhash
from torch import nn

CHECKSUM_PREFIX = "tensors-sha256:"


@dataclasses.dataclass(frozen=True)
class OwnTensor:
    """A tensor that a module had before it was adapted.

    Args:
        name: What it was called then.
        path: What it is called now.
        tensor: A parameter or a buffer of the state dict.
    """

    name: str
    path: str
    tensor: torch.Tensor


def own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules that a model had before it was adapted, under the names that they had.

    Args:
        module: A model, or a part of one.
        name: Its own name; what lies below is named behind it.
    """
    for own_name, _, own in _own_modules(module, name, name):
        yield own_name, own


def own_tensors(module: nn.Module) -> Iterator[OwnTensor]:
    """Parameters and stored buffers that a module had before it was adapted, tied ones under each of their names."""
    for name, path, owner in _own_modules(module, "", ""):
        for key, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and key not in owner._non_persistent_buffers_set:
                yield OwnTensor(f"{name}.{key}" if name else key, f"{path}.{key}" if path else key, tensor.detach())


def own_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state dict as it would be without adapters."""
    return {own.name: own.tensor for own in own_tensors(module)}


def _own_modules(module: nn.Module, name: str, path: str) -> Iterator[tuple[str, str, nn.Module]]:
    # PEFT's layers keep what they stand in for under the one name, its copies of trained modules under the other.
    for inside in ("base_layer", "original_module"):
        if module._modules.get(inside) is not None:
            yield from _own_modules(module._modules[inside], name, f"{path}.{inside}" if path else inside)
            return
    yield name, path, module
    for child_name, child in module.named_children():
        yield from _own_modules(
            child, f"{name}.{child_name}" if name else child_name, f"{path}.{child_name}" if path else child_name
        )


def merged_adapters(module: nn.Module) -> list[str]:
    """Names of adapters that are added to the weights for the time being, by PEFT's `merge_adapter`."""
    return sorted({name for part in module.modules() for name in vars(part).get("merged_adapters", ())})


def tensors_checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """A name for weights, whatever files and shards they came in.

    Args:
        tensors: By name.

    Returns:
        `"tensors-sha256:"` and 64 hex digits: the SHA-256 of the lines `name dtype shape` and the bytes of each tensor
        in the order of their names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return f"{CHECKSUM_PREFIX}{digest.hexdigest()}"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What the tensors of a part were when it was opened, to tell later whether they changed.

    Not by torch's version counters, which do not notice what PEFT writes by way of `.data`.

    Args:
        digests: For each tensor its dtype and a fast hash of its bytes.
    """

    digests: dict[str, tuple[torch.dtype, str]]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
        """Take the fingerprint of tensors; those whose bytes are not here (offloaded, sharded) are left out."""
        return cls({name: (tensor.dtype, _fast_hash(tensor)) for name, tensor in tensors.items() if _is_here(tensor)})

    def is_in_other_precision(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether one of the tensors has another dtype than it was opened with, so that bytes cannot be compared."""
        return any(name in self.digests and self.digests[name][0] != each.dtype for name, each in tensors.items())

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of tensors that are not what they were, in the same precision; sorted."""
        return sorted(
            name
            for name, tensor in tensors.items()
            if _is_here(tensor) and self.digests.get(name) != (tensor.dtype, _fast_hash(tensor))
        )


def differing(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal to those of the same name, brought to the same precision; sorted."""
    return sorted(
        name
        for name, tensor in ours.items()
        if name not in theirs
        or _is_here(tensor)
        and not torch.equal(theirs[name].to(tensor.device, tensor.dtype), tensor)
    )


def not_finite(module: nn.Module) -> list[str]:
    """Names of weights and of statistics of norms that hold NaN or infinity; sorted."""
    named = [*module.named_parameters(), *((name, b) for name, b in module.named_buffers() if ".running_" in name)]
    return sorted(name for name, tensor in named if not _is_finite(tensor.detach()))


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not _is_here(tensor):
        return True
    # A finite sum has finite terms, and costs one pass; an infinite one may be an overflow.
    return bool(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).isfinite()) or bool(
        tensor.isfinite().all()
    )


def _is_here(tensor: torch.Tensor) -> bool:
    # Neither offloaded, nor one shard of a DTensor, nor given away to DeepSpeed.
    return tensor.device.type != "meta" and not hasattr(tensor, "full_tensor") and not hasattr(tensor, "ds_id")


def _fast_hash(tensor: torch.Tensor) -> str:
    if hasattr(tensor, "__tensor_flatten__"):  # a subclass that keeps few bits and scales in tensors of its own
        names, _ = tensor.__tensor_flatten__()
        return " ".join(_fast_hash(getattr(tensor, name)) for name in names)
    digest = xxhash.xxh3_128(f"{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().as_subclass(torch.Tensor)  # parameters of quantizers do more on their way to the CPU
    return memoryview(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
