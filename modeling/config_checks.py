"""Allowed ranges of the numbers in a configuration, and their check.

Configs may come from untrusted repositories. Sizes are bounded, far above any published model, so that no model is
built that fits on no computer; NaN and infinity are rejected.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedConfig

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest allowed value by field, both inclusive; for a list, of each entry."""

CHANNELS = (1, 65_536)
LAYERS = (1, 512)
HEADS = (1, 1_024)
TOKENS = (1, 100_000)
SHARE = (0, 1)
EPSILON = (0, 1)
SPREAD = (0, 10)
_LARGEST = 2**38
_LONGEST = 1_000
_DEEPEST = 8

# Sizes under the names that transformers configurations use, for any model.
SIZES: Ranges = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"),
        (0, LAYERS[1]),
    ),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "encoder_attention_heads"), HEADS
    ),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "projection_dim", "head_dim"), CHANNELS),
    **dict.fromkeys(("intermediate_size", "n_inner", "encoder_ffn_dim", "d_ff"), (1, 2**20)),
    **dict.fromkeys(("vocab_size",), (0, 10**7)),
    **dict.fromkeys(("type_vocab_size",), (0, 10**4)),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), (0, 10**8)),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "num_mel_bins", "num_frames"), (1, 65_536)),
    **dict.fromkeys(("num_labels",), (0, 10**6)),
    **dict.fromkeys(("num_query_tokens",), TOKENS),
}


def check_numbers(config: Any, ranges: Ranges, others: Mapping[str, Any] | None = None) -> None:
    """Check that the numeric fields of a configuration are finite numbers within their ranges.

    Args:
        config: A dataclass, such as a config of transformers or PEFT. Numeric fields
            are found by their annotations: `int`, `float` and lists of them.
        ranges: Ranges by field; a field without a range only has to be finite.
        others: Further keyword arguments, such as settings of transformers.

    Raises:
        ValueError: Names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(config):
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        value = getattr(config, field.name, None)
        if field.name in ranges or kind.startswith(("int", "float", "list[int", "list[float")):
            _check_field(field.name, kind, value, ranges.get(field.name, (-_LARGEST, _LARGEST)))
        elif isinstance(value, (Mapping, PreTrainedConfig)):
            check_sizes(value, f"{field.name}.")
    check_sizes(others or {})


def check_choices(config: Any, choices: Mapping[str, Collection[Any]]) -> None:
    """Check that fields of a configuration have one of their allowed values.

    Raises:
        ValueError: Names the field, its value and what is allowed.
    """
    for name, allowed in choices.items():
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")


class CategoriesConfigMixin:
    """For configs of models with a head on pooled features, or for the parts of objects of some categories."""

    @property
    def num_categories(self) -> int:
        """Number of object categories of a part segmentation model."""
        return len(self.category_parts or ())

    def check_heads(self) -> None:
        """Check poolings and names of categories.

        Raises:
            ValueError: If a pooling is unknown, there is none, or categories and their names differ in number.
        """
        if not self.pooling or set(self.pooling) - {"max", "mean", "cls"}:
            raise ValueError(f"pooling={self.pooling}; expected some of 'max', 'mean', 'cls'")
        if self.category_names is not None and len(self.category_names) != self.num_categories:
            raise ValueError(
                f"category_names={list(self.category_names)}; expected {self.num_categories} names, as category_parts "
                "has entries"
            )


def check_sizes(settings: Mapping[str, Any] | PreTrainedConfig, place: str = "", depth: int = 0) -> None:
    """Check that the settings of any model are finite and of a plausible size.

    Args:
        settings: By name, as in a config.json; nested configs are checked too.
        place: Prefix of names in messages.
        depth: Level of nesting.

    Raises:
        ValueError: Names the setting, its value and what is allowed.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{place}: settings are nested more than {_DEEPEST} levels deep")
    for name, value in (settings if isinstance(settings, Mapping) else vars(settings)).items():
        if isinstance(value, (Mapping, PreTrainedConfig)):
            check_sizes(value, f"{place}{name}.", depth + 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}{name}={value!r}; expected a finite number")
        elif name in SIZES and isinstance(value, numbers.Real):
            low, high = SIZES[name]
            if not low <= value <= high:
                raise ValueError(f"{place}{name}={_shown(value)}; expected {low:,} to {high:,}")


def _check_field(name: str, kind: str, value: Any, allowed: tuple[float, float]) -> None:
    if value is None and "None" in kind:
        return
    if isinstance(value, (list, tuple)) and ("list[" in kind or "tuple[" in kind):
        if len(value) > _LONGEST:
            raise ValueError(f"{name} has {len(value):,} entries; expected at most {_LONGEST:,}")
        for entry in value:
            # `category_parts` is a list of lists.
            _check_field(name, kind if isinstance(entry, (list, tuple)) else _entry(kind), entry, allowed)
        return
    is_integer = "float" not in kind
    is_number = isinstance(value, numbers.Integral if is_integer else numbers.Real) and not isinstance(value, bool)
    is_list = not {"int", "float"} & {choice.strip() for choice in re.sub(r"\[.*?\]", "", kind).split("|")}
    if is_list or not is_number:
        expected = "a list of numbers" if is_list else "a whole number" if is_integer else "a number"
        raise ValueError(f"{name}={_shown(value)}; expected {expected}")
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name}={_shown(value)}; expected {low:,} to {high:,}")


def _entry(kind: str) -> str:
    inside = "float" if "float" in kind else "int"
    return f"{inside} | None" if f"list[{inside} | None" in kind else inside


def _shown(value: Any) -> str:
    # Python raises an error for numbers with thousands of digits.
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
