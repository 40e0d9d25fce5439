"""Rotations of an encoder at any place, by frequencies that are read off its own cosines and sines.

An encoder rotates pairs of channels by place times frequency. How its channels are paired, which of them it leaves
alone and how it scales them shows in the cosines and sines that it gives its layers for the places 0, 1, 2, …: seen as
complex numbers, each channel is `scale * exp(i * (place * frequency + phase))`. The same formula holds between places.

A token has one coordinate per view; these rules combine them into one rotation:

- "split_frequencies" (default): each frequency belongs to one view, in turn, as 2D rotary encoders treat the two axes
  of an image.
- "split_heads": each head (with the queries that share its keys, in grouped attention) belongs to one view, in turn.
- "mean_angle": the mean coordinate, a projection onto one direction, so that what distinguishes the views is lost.
- "first_view": only the first view, as a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_any3d.modeling.encoders.positions import LayerPass, tensor_at
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.direct_weights import onloaded

_TOLERANCE = 1e-4
BATCH_FORMS = ("batch", "heads", "given")
"""Forms of the axis of the batch, where an encoder's own rotations have none: it is the first axis, or followed by one
of the heads, or given where layers add an axis of their own."""


class BatchedRotation:
    """Cosines or sines `(batch, tokens, channels)`, for layers that add the axis of the batch themselves."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def unsqueeze(self, dim: int) -> torch.Tensor:
        """Return the values: the axis of the batch exists already."""
        return self.values


class HeadRotation:
    """Cosines or sines `(batch, key heads, tokens, channels)`, for layers that broadcast one tensor over the heads."""

    def __init__(self, values: torch.Tensor):
        self.values = values
        self.shape = values.shape

    def unsqueeze(self, dim: int) -> HeadRotation:
        """Return itself: the axis of heads exists already."""
        return self

    def __rmul__(self, states: torch.Tensor) -> torch.Tensor:
        # Grouped attention has several query heads for each key head, which share its rotation.
        groups = states.shape[1] // self.values.shape[1]
        return states * self.values.repeat_interleave(groups, dim=1)


@dataclass(frozen=True)
class FittedRotation:
    """Rotation of each channel as a function of the place.

    Args:
        frequencies: Radians per step `(axes, channels)`; along the line, or along rows and columns of a grid.
        phase: Radians at the first place, `(channels,)`.
        scale: Length of the rotated vectors.
        special: Cosines and sines of the encoder's own class token, `(2, channels)`; None if it has none.
        special_path: Name of the encoder's weight whose values are the class token's angles, instead of `special`.
        owners: Number of each channel's frequency, counted without repetition, `(channels,)`.
        count: Frequencies without repetition.
        form: "pair" of cosines and sines, "complex" numbers, or "halves" of sines and cosines in one tensor.
        axis: Axis of the tokens in the encoder's own tensors.
        ndim: Number of axes of these.
    """

    frequencies: torch.Tensor
    phase: torch.Tensor
    scale: float
    special: torch.Tensor | None
    owners: torch.Tensor
    count: int
    form: str
    axis: int
    ndim: int
    special_path: str | None = None
    _on_devices: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, compare=False)

    @torch.no_grad()
    def at(self, call: LayerPass, batch_form: str = "batch") -> Any:
        """Return what layers get for tokens at the places of a pass, with the views combined.

        Tensors without an axis of the batch get one in the `batch_form` that the layers take, of `BATCH_FORMS`.
        """
        if call.rotary_views == "split_heads" and call.places.entry.shape[1] > 1:
            return self._at_each_head(call, batch_form)
        entry = call.places.entry  # (batch, views, tokens, 1), or (…, 2) as (column, row)
        device = entry.device
        # Angles reach hundreds of radians, where half precision has steps of a radian or more.
        with autocast_disabled(device):
            coordinates = entry.float().flip(-1)
            # No matrix product, which TF32 would round
            angles = (coordinates.unsqueeze(-1) * self._on("frequencies", device)).sum(dim=-2)
            angles = self._combine_views(angles, call) + self._on("phase", device)  # (batch, tokens, channels)
            cosine = angles.cos() * self.scale
            sine = angles.sin() * self.scale
        if self.special is not None:
            fixed = torch.zeros(entry.shape[2], 1, dtype=torch.bool, device=device)
            # The class token, and tokens that adapters add, which have no place either
            fixed[: call.places.class_tokens] = True
            fixed[entry.shape[2] - call.places.added :] = True
            own = self._on("special", device) if self.special_path is None else self._learned_special(call)
            cosine = torch.where(fixed, own[0], cosine)
            sine = torch.where(fixed, own[1], sine)
        if self.form == "complex":
            return self._shaped(torch.complex(cosine, sine), batch_form)
        cosine = self._shaped(cosine.to(call.hidden_states.dtype), batch_form)
        sine = self._shaped(sine.to(call.hidden_states.dtype), batch_form)
        return (cosine, sine) if self.form == "pair" else torch.cat([sine, cosine], dim=-1)

    def _learned_special(self, call: LayerPass) -> torch.Tensor:
        with onloaded(call.encoder.get_submodule(self.special_path.rpartition(".")[0])):
            angles = tensor_at(call.encoder, self.special_path).flatten().float()
        angles = angles.repeat(self.special.shape[-1] // len(angles))
        return torch.stack([angles.cos(), angles.sin()]) * self.scale

    def _at_each_head(self, call: LayerPass, batch_form: str) -> tuple[Any, Any]:
        """Return a rotation for each key head, of which each has one of the views."""
        # Those with an axis of heads of their own, or to which the layers add none
        has_heads = self.ndim == 2 and batch_form == "heads"
        if self.form != "pair" or not (self.ndim == 3 or has_heads):
            raise ValueError(
                "rotary_views='split_heads': layers of this encoder take one rotation for all heads; expected "
                "'split_frequencies', 'mean_angle' or 'first_view'"
            )
        config = call.encoder.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        views = call.places.entry.shape[1]
        if heads < views:
            raise ValueError(
                f"rotary_views='split_heads': the encoder has {heads} key heads for num_views={views}; use fewer "
                "views, or another rule"
            )
        # A pass through one view after the other
        pairs = []
        for place in call.places.entry.split(1, dim=1):
            one_view = replace(call, places=replace(call.places, entry=place), rotary_views="first_view")
            pairs.append(self.at(one_view, batch_form))
        owners = [head % views for head in range(heads)]
        if has_heads:
            cosine, sine = (torch.cat([pairs[owner][part] for owner in owners], dim=1) for part in (0, 1))
            return cosine, sine
        cosine = torch.stack([pairs[owner][0] for owner in owners], dim=1)  # (batch, key heads, tokens, channels)
        sine = torch.stack([pairs[owner][1] for owner in owners], dim=1)
        return HeadRotation(cosine), HeadRotation(sine)

    def _combine_views(self, angles: torch.Tensor, call: LayerPass) -> torch.Tensor:
        """Combine angles `(batch, views, tokens, channels)` of the views."""
        views = angles.shape[1]
        rule = call.rotary_views
        if views == 1 or rule == "first_view":
            return angles[:, 0]
        if rule == "mean_angle":
            return angles.mean(dim=1)
        if self.count < views:
            raise ValueError(
                f"rotary_views={rule!r}: the encoder has {self.count} frequencies for num_views={views}; "
                "use fewer views, or another rule"
            )
        # Channels of one frequency belong to one view; frequencies are dealt out in turn.
        owner = (self._on("owners", angles.device) % views).expand(angles.shape[0], 1, angles.shape[2], -1)
        return angles.gather(1, owner)[:, 0]

    def _on(self, name: str, device: torch.device) -> torch.Tensor:
        """Return one of the tensors on a device, where it is sent once."""
        if device.type == "cpu" or torch.compiler.is_compiling():
            return getattr(self, name).to(device)
        if (name, device) not in self._on_devices:
            self._on_devices[name, device] = getattr(self, name).to(device)
        return self._on_devices[name, device]

    def _shaped(self, values: torch.Tensor, batch_form: str) -> Any:
        """Bring `(batch, tokens, channels)` into the order of axes that the layers take."""
        if self.ndim == 2:
            if batch_form == "given":
                return BatchedRotation(values)
            return values.unsqueeze(1) if batch_form == "heads" else values
        shape = [1] * self.ndim
        axis = self.axis
        shape[0] = values.shape[0]
        shape[axis] = values.shape[1]
        shape[-1] = values.shape[2]
        return values.reshape(shape)


def fit_rotation(
    cosine: torch.Tensor, sine: torch.Tensor, grid: tuple[int, ...], total: int, form: str
) -> FittedRotation | None:
    """Fit a rotation to an encoder's own cosines and sines at the places of `grid`; None if they are none.

    Args:
        cosine: With an axis of `total` tokens, or of those of the grid alone, and the channels last.
        sine: The same.
        grid: `(places,)` of a line, or `(rows, columns)`.
        total: Number of the encoder's own tokens, of which those before the grid are special.
        form: As in `FittedRotation`.
    """
    places = math.prod(grid)
    axes = [axis for axis in range(cosine.ndim - 1) if cosine.shape[axis] in (places, total)]
    if not axes or (cosine.ndim > 2 and axes[-1] == 0):
        return None
    axis = axes[-1]
    values = torch.complex(cosine.double(), sine.double()).movedim(axis, 0)
    values = values.reshape(values.shape[0], -1, values.shape[-1])[:, 0]  # (tokens, channels)
    scale = values.abs().mean()
    if scale < 1e-6 or (values.abs() / scale - 1).abs().max() > 1e-3:
        return None
    values = values / scale
    special = None
    if total > places:
        # Rotations of the patches alone leave special tokens as they are.
        own = values[0] * scale if len(values) == total else torch.ones_like(values[0])
        special = torch.stack([own.real, own.imag]).float()
    table = values[len(values) - places :].reshape(*grid, -1)
    frequencies = torch.stack([_steps_along(table.movedim(number, 0)) for number in range(len(grid))])
    whole = [torch.arange(count, dtype=torch.float64) for count in grid]
    coordinates = torch.stack(torch.meshgrid(*whole, indexing="ij"), dim=-1)
    phase = torch.angle(table[(0,) * len(grid)])
    fitted = torch.polar(torch.ones_like(table.real), coordinates @ frequencies + phase)
    if (fitted - table).abs().max() > _TOLERANCE:
        return None
    owners = _numbered(frequencies)
    return FittedRotation(
        frequencies=frequencies.float(),
        phase=phase.float(),
        scale=float(scale),
        special=special,
        owners=owners,
        count=int(owners.max()) + 1,
        form=form,
        axis=axis,
        ndim=cosine.ndim,
    )


def _steps_along(table: torch.Tensor) -> torch.Tensor:
    """Return the angle from one place to the next along the first axis, `(channels,)`."""
    line = table.reshape(table.shape[0], -1, table.shape[-1])[:, 0]
    if len(line) < 2:
        return torch.zeros(table.shape[-1], dtype=torch.float64)
    step = torch.angle(line[1] / line[0])
    distance = 2
    # Longer distances make it sharper: what is left of a turn there is divided by the distance.
    while distance < len(line):
        rest = torch.angle(line[distance] / line[0] * torch.polar(torch.ones_like(step), -step * distance))
        step = step + rest / distance
        distance *= 2
    return step


def _numbered(frequencies: torch.Tensor) -> torch.Tensor:
    """Count frequencies `(axes, channels)` without repetition, those of rows and columns together: `(channels,)`."""
    numbers: list[int] = []
    known: list[float] = []
    for size in frequencies.abs().sum(dim=0).tolist():
        match = next((number for number, one in enumerate(known) if math.isclose(one, size, rel_tol=1e-5)), None)
        if match is None:
            known.append(size)
        numbers.append(len(known) - 1 if match is None else match)
    return torch.tensor(numbers)
