"""What a user of the page may set, with the ranges of the released demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_any3d.chat import PUBLISHED_GENERATION


@dataclass(frozen=True)
class Slider:
    """An argument of `generate` between two bounds.

    Attributes:
        name: Of the argument.
        label: What the page calls it.
        low: Least value.
        high: Largest value.
        step: Between values.
        default: Where it stands at first.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    default: float


SLIDERS = (
    Slider("max_new_tokens", "Longest answer, in tokens", 10, 200, 1, 60),
    Slider("num_beams", "Beams", 1, 10, 1, 1),
    Slider("temperature", "Temperature", 0.1, 2.0, 0.1, 0.2),
)
"""The released demo's. Its other settings are fixed: top-p 0.9, repetition penalty 1.05, length penalty 1."""

def generation_settings(*values: float) -> dict[str, Any]:
    """Arguments of `generate` for the values of all sliders, in their order."""
    chosen = {slider.name: type(slider.default)(value) for slider, value in zip(SLIDERS, values, strict=True)}
    return {**PUBLISHED_GENERATION["demo"], **chosen}
