"""Checks of settings: stored files of them, types, and allowed ranges of our own numbers."""

import dataclasses
import json
import numbers
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest allowed value by field, both inclusive; for a list, of each entry."""

SHARE = (0, 1)
COMMON_RANGES: Ranges = {
    **dict.fromkeys(("drop_path_rate", "decoder_drop_path_rate", "mask_ratio"), SHARE),
    **dict.fromkeys(("layer_norm_eps", "batch_norm_eps", "final_norm_eps", "offset_eps"), SHARE),
    "num_hidden_layers": (1, 512),
    "in_channels": (3, 4096),
    "temperature": (1e-3, 1e3),
}
"""Fields of several models. What torch refuses as a model is built, such as sizes below 1, has no range."""
_LARGEST = 2**38
_PLAIN_KINDS = {"bool": bool, "str": str, "bool | None": (bool, type(None)), "str | None": (str, type(None))}
_PLAIN_NAMES = {"bool": "True or False", "str": "a text"}

SETTINGS_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"),
)
"""Files of settings in the directory of a saved model."""
# What transformers reads before a class of ours does, in any of these files.
_STORED_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("auto_map", "custom_pipelines", "parts"), (Mapping, "an object")),
    **dict.fromkeys(("id2label", "label2id", "quantization_config"), (Mapping, "an object")),
    **dict.fromkeys(("encoder_config", "text_config"), ((Mapping, PreTrainedConfig), "an object")),
    **dict.fromkeys(("model_type", "processor_class", "feature_extractor_type", "tokenizer_class"), (str, "a text")),
    **dict.fromkeys(("base_model_name_or_path", "revision"), (str, "a text")),
    "architectures": ((list, tuple), "a list"),
    "model_max_length": (numbers.Real, "a number"),
    **dict.fromkeys(("dtype", "torch_dtype"), ((str, Mapping, torch.dtype), "a type of torch, such as 'float32'")),
}
_TOKENS = ("suppress_tokens", "begin_suppress_tokens", "eos_token_id", "bos_token_id", "pad_token_id")


def read_settings(file: str | os.PathLike) -> dict[str, Any]:
    """Read a file of settings, and check what libraries read in it before a class of ours does."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds {_shown(content)}; expected settings by name")
    with stored_settings(file):
        check_stored_fields(content)
    return content


def check_stored_fields(content: Mapping[str, Any]) -> None:
    """Check the fields of stored settings that belong to transformers and PEFT."""
    for name, (kind, expected) in _STORED_KINDS.items():
        value = content.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name}={_shown(value)}; expected {expected}")
    for name in ("dtype", "torch_dtype"):
        value = content.get(name)
        if isinstance(value, str) and value != "auto" and not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"{name}={_shown(value)}; expected a type of torch, such as 'float32'")
    for number, label in (content.get("id2label") or {}).items():
        if not str(number).isdecimal() or not isinstance(label, str):
            raise ValueError(f"id2label has {_shown({number: label})}; expected numbers with names of classes")
    for name, place in (content.get("auto_map") or {}).items():
        if not isinstance(place, (str, list)):
            raise ValueError(f"auto_map has {_shown({name: place})}; expected names of classes")
    for name in _TOKENS:
        value = content.get(name)
        if not all(isinstance(token, int) for token in (value if isinstance(value, (list, tuple)) else [value or 0])):
            raise ValueError(f"{name}={_shown(value)}; expected numbers of tokens")
    if unnamed := [value for value in content.get("architectures") or () if not isinstance(value, str)]:
        raise ValueError(f"architectures has {_shown(unnamed[0])}; expected names of classes")


def check_settings_files(folder: str | os.PathLike) -> None:
    """Check all files of settings in a directory, see `read_settings`; does nothing for a name on the hub."""
    for name in SETTINGS_FILES:
        if (file := Path(folder, name)).is_file():
            read_settings(file)


@contextmanager
def stored_settings(place: object = None) -> Iterator[None]:
    """Name the place of stored settings in errors of what is built from them.

    Settings of an unexpected type fail anywhere and with any error, as do those of an encoder, whose class is not of
    this package.

    Args:
        place: File, directory or hub name; None leaves naming it to an enclosing call.
    """
    before = "" if place is None else f"{place}: "
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except ValueError as error:
        if type(error) is not ValueError or str(place) in str(error):
            raise
        raise ValueError(f"{before}{error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{before}cannot be used ({type(error).__name__}: {reason})") from error


def check_numbers(config: Any, ranges: Ranges | None = None) -> None:
    """Check that the fields of a configuration have their types, and that numbers are finite and within their ranges.

    Args:
        config: A dataclass, such as a config of transformers or PEFT. Fields are found by their annotations: `int`,
            `float` and lists of them, `bool` and `str`.
        ranges: Ranges by field, besides those of `COMMON_RANGES`; a field without one only has to be finite.
    """
    ranges = {**COMMON_RANGES, **(ranges or {})}
    for field in dataclasses.fields(config):
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        value = getattr(config, field.name, None)
        if field.name in ranges or kind.startswith(("int", "float", "list[int", "list[float")):
            _check_field(field.name, kind, value, ranges.get(field.name, (-_LARGEST, _LARGEST)))
        elif kind in _PLAIN_KINDS and not isinstance(value, _PLAIN_KINDS[kind]):
            raise ValueError(f"{field.name}={_shown(value)}; expected {_PLAIN_NAMES[kind.partition(' ')[0]]}")


def check_fields(config_class: type[PreTrainedConfig], settings: Mapping[str, Any], method: str) -> None:
    """Refuse settings that a config does not have; it would accept any, without an effect."""
    known = config_class()
    if unknown := [name for name in settings if not hasattr(known, name)]:
        raise TypeError(f"{method} has no argument {unknown[0]!r}; expected its own or one of {config_class.__name__}")


def check_choices(config: Any, choices: Mapping[str, Collection[Any]]) -> None:
    """Check that fields of a configuration have one of their allowed values."""
    for name, allowed in choices.items():
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")


class CategoriesConfigMixin:
    """For configs of models with a head on pooled features, or for the parts of objects of some categories."""

    poolings: ClassVar[frozenset[str]] = frozenset({"max", "mean", "cls"})

    @property
    def num_categories(self) -> int:
        """Number of object categories of a part segmentation model."""
        return len(self.category_parts or ())

    def check_heads(self) -> None:
        """Check poolings and names of categories."""
        if not self.pooling or set(self.pooling) - self.poolings:
            expected = ", ".join(map(repr, sorted(self.poolings)))
            raise ValueError(f"pooling={self.pooling}; expected some of {expected}")
        if self.category_names is not None and len(self.category_names) != self.num_categories:
            raise ValueError(
                f"category_names={list(self.category_names)}; expected {self.num_categories} names, as category_parts "
                "has entries"
            )


def _check_field(name: str, kind: str, value: Any, allowed: tuple[float, float]) -> None:
    if value is None and "None" in kind:
        return
    if isinstance(value, (list, tuple)) and ("list[" in kind or "tuple[" in kind):
        for entry in value:
            _check_field(name, _entry(kind), entry, allowed)
        return
    is_integer = "float" not in kind
    is_number = isinstance(value, numbers.Integral if is_integer else numbers.Real) and not isinstance(value, bool)
    # Numbers only inside of brackets: the field takes lists alone.
    is_list = not {"int", "float"} & {choice.strip() for choice in re.sub(r"\[.*?\]", "", kind).split("|")}
    if is_list or not is_number:
        expected = "a list of numbers" if is_list else "a whole number" if is_integer else "a number"
        raise ValueError(f"{name}={_shown(value)}; expected {expected}")
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name}={_shown(value)}; expected {low:,} to {high:,}")


def _entry(kind: str) -> str:
    """Return the annotation of a list's entries; those of `category_parts` are lists, too."""
    inside = "float" if "float" in kind else "int"
    if "list[list[" in kind:
        return f"list[{inside}]"
    return f"{inside} | None" if f"list[{inside} | None" in kind else inside


def _shown(value: Any) -> str:
    # Python raises an error for numbers with thousands of digits.
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
