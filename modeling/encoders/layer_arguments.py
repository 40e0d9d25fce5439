"""Arguments of an encoder's layers for point tokens, by example of those that its own forward pass gives them.

Each argument is what it does: a mask, a rotation, a setting. Those that depend on places are made anew at the tokens'
coordinates; masks hide nothing; settings stay as they are. What belongs to single words has no meaning for points.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders.fitted_rotation import FittedRotation, fit_rotation
from hf_any3d.modeling.encoders.positions import LayerPass
from hf_any3d.modeling.encoders.registry import UnsupportedEncoder
from hf_any3d.modeling.encoders.skeleton import BATCH, Call

MASK_FORMS = ("none", "pairs", "keys")
"""Forms of a mask that hides nothing: None, zeros for all pairs of tokens, or zeros for all keys."""


class _Mask:
    """Stands for the attention mask, in whichever form the layers need."""


class _Order:
    """Placeholder for the positions of the tokens in their sequence, which depend on their number alone."""


@dataclass
class LayerArguments:
    """Makes the keyword arguments of each layer; a family's `layer_inputs`.

    Args:
        layers: For each layer what its arguments are: constants, rotations, `_Mask` or `_Order`.
        mask_form: One of `MASK_FORMS`.
        triangles: Names in a layer of square buffers that hide later tokens, and of modules with a flag that does.
        batch_form: One of `BATCH_FORMS`, for rotations without an axis of the batch.
        plan: Makes `layers` for a line of another length; None if the length does not matter.
    """

    layers: list[dict[str, Any]]
    mask_form: str = "pairs"
    triangles: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    batch_form: str = "batch"
    plan: Callable[[int], list[dict[str, Any]]] | None = None
    _planned: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def __call__(self, call: LayerPass) -> Iterator[dict[str, Any]]:
        """Yield the keyword arguments of each layer."""
        is_flash = "flash" in (call.encoder.config._attn_implementation or "")
        if is_flash:
            _check_flash(call, self.mask_form)
        look_both_ways(call.layers, self.triangles, call.hidden_states.shape[1])
        made: dict[int, Any] = {}
        for arguments in self._layers_for(call):
            values = {}
            for name, meaning in arguments.items():
                # Layers share rotations and masks.
                if id(meaning) not in made:
                    made[id(meaning)] = self._make(meaning, call)
                values[name] = made[id(meaning)]
                if is_flash and isinstance(meaning, _Mask):
                    values[name] = None
            # Flash attention takes no mask of pairs, but this keyword.
            yield values | {"is_causal": False} if is_flash and self.mask_form != "none" else values

    @property
    def ignores_places(self) -> bool:
        """True if the arguments are the same wherever tokens are, and however many there are."""
        leaves = [leaf for arguments in self.layers for value in arguments.values() for leaf in _leaves_of(value)]
        is_plain = all(isinstance(leaf, (bool, int, float, str, _Mask)) or leaf is None for leaf in leaves)
        return is_plain and self.mask_form == "none" and self.plan is None and not self.triangles[0]

    def _layers_for(self, call: LayerPass) -> list[dict[str, Any]]:
        columns = call.places.columns
        if self.plan is None:
            return self.layers
        if columns not in self._planned:
            self._planned[columns] = self.plan(columns)
        return self._planned[columns]

    def _make(self, meaning: Any, call: LayerPass) -> Any:
        batch, tokens = call.hidden_states.shape[:2]
        if isinstance(meaning, FittedRotation):
            return meaning.at(call, self.batch_form)
        if isinstance(meaning, _Mask):
            if self.mask_form == "none":
                return None
            queries = tokens if self.mask_form == "pairs" else 1
            return call.hidden_states.new_zeros(batch, 1, queries, tokens)
        if isinstance(meaning, _Order):
            return torch.arange(tokens, device=call.hidden_states.device).unsqueeze(0)
        if isinstance(meaning, dict):
            return {name: self._make(value, call) for name, value in meaning.items()}
        if isinstance(meaning, torch.Tensor):
            return meaning.to(call.hidden_states.device)
        return meaning


def _leaves_of(value: Any) -> list[Any]:
    if isinstance(value, (dict, list, tuple)):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in _leaves_of(part)]
    return [value]


def _check_flash(call: LayerPass, mask_form: str) -> None:
    """Refuse flash attention where it would hide tokens from each other."""
    config = call.encoder.config
    expected = "expected 'sdpa' or 'eager'"
    keywords = inspect.signature(type(bare_layer(call.layers[0])).forward).parameters.values()
    # It takes no mask that hides nothing, but a keyword.
    if mask_form != "none" and all(keyword.kind is not keyword.VAR_KEYWORD for keyword in keywords):
        raise ValueError(f"attn_implementation={config._attn_implementation!r} masks later tokens here; {expected}")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < call.hidden_states.shape[1]:
        raise ValueError(f"a sliding window of {window} tokens is less than a cloud; {expected}")


def look_both_ways(layers: Any, triangles: tuple[tuple[str, ...], tuple[str, ...]], tokens: int) -> None:
    """Let all tokens of layers attend to each other where a buffer or a flag hides later ones, in place."""
    buffers, flags = triangles
    if not buffers and not flags:
        return
    for layer in layers:
        layer = bare_layer(layer)
        for path in buffers:
            owner, _, name = path.rpartition(".")
            module = _submodule(layer, owner)
            if module is not None and name in module._buffers:
                _fill(module, name, tokens)
        for path in flags:
            module = _submodule(layer, path)
            if module is not None:
                module.is_causal = False


def _fill(module: nn.Module, name: str, tokens: int) -> None:
    buffer = module._buffers[name]
    if buffer.shape[-1] >= tokens and buffer.stride(-1) == 0:  # replaced before
        return
    if buffer.shape[-1] >= tokens or name not in module._non_persistent_buffers_set:
        buffer.fill_(1)
        return
    # A sequence longer than the encoder's longest text: ones for all pairs, which take no memory.
    one = torch.ones([1] * buffer.ndim, dtype=buffer.dtype, device=buffer.device)
    module._buffers[name] = one.expand(*buffer.shape[:-2], tokens, tokens)


def _submodule(layer: nn.Module, path: str) -> nn.Module | None:
    try:
        return layer.get_submodule(path)
    except AttributeError:  # layers of another kind
        return None


def bare_layer(layer: nn.Module) -> nn.Module:
    """Return the layer inside the adapters around it."""
    while "base_layer" in layer._modules:
        layer = layer._modules["base_layer"]
    return layer


def find_triangles(layers: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names, in a layer, of square buffers of ones and zeros, and of modules whose flag is causal."""
    buffers: dict[str, None] = {}
    flags: dict[str, None] = {}
    for layer in layers:
        for path, module in layer.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                is_square = buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1
                if is_square and buffer.dtype in (torch.bool, torch.uint8):
                    buffers[f"{path}.{name}" if path else name] = None
            if getattr(module, "is_causal", None) is True:
                flags[path] = None
    return tuple(buffers), tuple(flags)


class ArgumentReader:
    """Reads the meaning of layers' arguments off two runs of an encoder with different words and weights.

    Args:
        grid: `(places,)` of a line, or `(rows, columns)`.
        total: Number of the encoder's own tokens, special ones included.
        weights: Weights of the first run that may be the angles by which a class token is rotated, by their names.
    """

    def __init__(self, grid: tuple[int, ...], total: int, weights: dict[str, torch.Tensor]):
        self.grid = grid
        self.total = total
        self.weights = weights
        self.mask = _Mask()
        self.order = _Order()
        self.rotations: dict[int, Any] = {}

    def read(self, calls: list[Call], others: list[Call]) -> list[dict[str, Any]]:
        """Return for each layer what its arguments are.

        Raises:
            UnsupportedEncoder: One belongs to words, or depends on learned weights.
        """
        layers = []
        for call, other in zip(calls, others, strict=True):
            meanings = {}
            for name, value in call.arguments.items():
                if name == call.main:
                    continue
                meanings[name] = self._meaning(name, value, other.arguments.get(name))
            layers.append(meanings)
        return layers

    def _meaning(self, name: str, value: Any, other: Any) -> Any:
        low = name.lower()
        if value is None and "mask" not in low:
            return None
        if "cache" in low or "past_key" in low or low.startswith("output_") or low == "is_causal":
            return False if isinstance(value, bool) else None
        if "mask" in low:
            return self._mask_meaning(low, value)
        if isinstance(value, (tuple, list)) and _are_tensors(value):
            return self._rotation(name, value, other)
        if isinstance(value, torch.Tensor):
            return self._tensor_meaning(name, value, other)
        if isinstance(value, Mapping):
            return {key: self._meaning(f"{name}.{key}", one, other[key]) for key, one in value.items()}
        return value

    def _mask_meaning(self, name: str, value: Any) -> Any:
        # Masks of heads and of another sequence, and masks of padding, which an encoder without any does without
        if "head" in name or "encoder" in name or (isinstance(value, torch.Tensor) and value.ndim < 3):
            return None
        if isinstance(value, Mapping):
            return dict.fromkeys(value, self.mask)
        return self.mask

    def _rotation(self, name: str, value: Any, other: Any) -> Any:
        if id(value[0]) in self.rotations:
            return self.rotations[id(value[0])]
        fitted = None
        if len(value) == 2 and all(part.is_floating_point() for part in value) and value[0].shape == value[1].shape:
            fitted = fit_rotation(*value, self.grid, self.total, "pair")
        if fitted is None:
            raise UnsupportedEncoder(f"argument {name!r} of its layers is no rotation by an angle linear in the place")
        fitted = self._with_learned_special(fitted, name, value[0], other[0])
        self.rotations[id(value[0])] = fitted
        return fitted

    def _with_learned_special(
        self, fitted: FittedRotation, name: str, value: torch.Tensor, other: Any
    ) -> FittedRotation:
        """Return a rotation that takes the class token's angles from the encoder's weights, if they are learned."""
        special = self.total - math.prod(self.grid)
        is_alike = isinstance(other, torch.Tensor) and other.shape == value.shape
        if special != 1 or fitted.special is None or not is_alike or value.shape[fitted.axis] != self.total:
            self._refuse_learned(name, value, other)
            return fitted
        self._refuse_learned(
            name, value.narrow(fitted.axis, 1, self.total - 1), other.narrow(fitted.axis, 1, self.total - 1)
        )
        if torch.equal(value, other):
            return fitted
        channels = fitted.special.shape[-1]
        for path, angles in self.weights.items():
            if channels % len(angles) == 0:
                angles = angles.float().repeat(channels // len(angles))
                made = torch.stack([angles.cos(), angles.sin()]) * fitted.scale
                if (made - fitted.special).abs().max() < 1e-4:
                    return replace(fitted, special_path=path)
        self._refuse_learned(name, value, other)
        return fitted

    def _tensor_meaning(self, name: str, value: torch.Tensor, other: Any) -> Any:
        if id(value) in self.rotations:
            return self.rotations[id(value)]
        fitted = None
        if value.is_complex():
            fitted = fit_rotation(value.real, value.imag, self.grid, self.total, "complex")
        elif value.is_floating_point() and value.ndim >= 2 and value.shape[-1] % 2 == 0:
            sine, cosine = value.chunk(2, dim=-1)
            fitted = fit_rotation(cosine, sine, self.grid, self.total, "halves")
        if fitted is not None:
            self._refuse_learned(name, value, other)
            self.rotations[id(value)] = fitted
            return fitted
        low = name.lower()
        count = (self.total, math.prod(self.grid))
        if any(size in count for size in value.shape):
            if not value.is_floating_point() and low.rpartition(".")[2] in ("position_ids", "cache_position"):
                return self.order
            if value.shape[-2:] == (self.total, self.total):
                raise UnsupportedEncoder(f"its layers get a bias for each pair of words ({name})")
            raise UnsupportedEncoder(f"its layers read a value for each word beside the tokens ({name})")
        if BATCH in value.shape:
            raise UnsupportedEncoder(f"its layers read a value for each text beside the tokens ({name})")
        self._refuse_learned(name, value, other)
        return value

    def _refuse_learned(self, name: str, value: torch.Tensor, other: Any) -> None:
        if not isinstance(other, torch.Tensor) or value.shape != other.shape or not torch.equal(value, other):
            raise UnsupportedEncoder(f"its layers read a value computed from learned weights or words ({name})")


def _are_tensors(values: Any) -> bool:
    return len(values) > 0 and all(isinstance(value, torch.Tensor) for value in values)
