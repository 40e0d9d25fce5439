"""Settings: what each means, allowed ranges and choices, and the place of stored ones in errors."""

import functools
import inspect
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest allowed value by field, both inclusive; for a list, of each entry."""

SHARE = (0, 1)
COMMON_RANGES: Ranges = {
    **dict.fromkeys(("drop_path_rate", "decoder_drop_path_rate", "mask_ratio"), SHARE),
    **dict.fromkeys(("layer_norm_eps", "batch_norm_eps", "final_norm_eps", "offset_eps"), SHARE),
    # Upper bounds are far beyond any model: a stored number that is damaged would ask for all memory.
    "num_hidden_layers": (1, 512),
    "in_channels": (3, 4096),
    "temperature": (1e-3, 1e3),
}
"""Fields of several models. What torch refuses as a model is built, such as sizes below 1, has no range."""

FIELDS: Mapping[str, str] = {
    "in_channels": "Channels of a point: 3 for xyz, 6 with colors or normals.",
    "num_groups": "Patches, and therefore tokens, per cloud.",
    "group_size": "Points per patch, including the center.",
    "patch_widths": "Output channels of the layers of the patch encoder.",
    "projection_dim": "Channels of the feature in the space of texts and images; None for the token itself.",
    "hidden_size": "Channels of a token.",
    "num_hidden_layers": "Number of transformer blocks.",
    "num_attention_heads": "Heads of each block's attention; a list has those of each stage.",
    "intermediate_size": "Hidden channels of a block's MLP.",
    "hidden_act": "Activation of the MLPs, by its name in transformers.",
    "attention_dropout": "Dropout of attention weights.",
    "qkv_bias": "Whether the layers of queries, keys and values have a bias.",
    "layer_norm_eps": "Epsilon of the layer norms.",
    "batch_norm_eps": "Epsilon of the batch norms.",
    "initializer_range": "Standard deviation of initial weights.",
    "head_dropout": "Dropout after each hidden layer of the classification head.",
    "segmentation_head_widths": "Widths of the segmentation head's hidden layers; empty for a linear head.",
    "segmentation_head_dropout": "Dropout of the segmentation head; a list has that after each hidden layer.",
    "decoder_num_hidden_layers": "Number of blocks of the decoder of masked patches.",
    "decoder_drop_path_rate": "Stochastic depth rate of that decoder's last block; it grows linearly from 0.",
    "encoder_layers": "Number of layers of the encoder.",
    "encoder_attention_heads": "Heads of the attention in each of them.",
    "decoder_layers": "Number of layers of the decoder.",
    "decoder_attention_heads": "Heads of the attention in each of them.",
    "decoder_hidden_sizes": "Channels of each decoder stage, the finest first.",
    "decoder_num_attention_heads": "Heads of the attention in each decoder stage, the finest first.",
}
"""What fields mean that several models have, where a configuration's own docstring does not say; see `name_fields`."""
# Entries of errors begin with a capital letter.
_ARGUMENT = re.compile(r"^    ([a-z_]\w*): (.+(?:\n {8,}\S.*)*)", re.MULTILINE)


def name_fields(config_class: type, texts: Mapping[str, str] | None = None) -> None:
    """Add the public fields that the docstring of a configuration does not name, as `help` shows it.

    A field has one text: in the docstring of the class that adds it, or in `FIELDS`.

    Args:
        config_class: A configuration of a model or a PEFT method.
        texts: Texts of fields that have theirs elsewhere.
    """
    own = inspect.cleandoc(config_class.__doc__ or "")
    # Fields of transformers and PEFT are described there.
    packages = {"hf_any3d", config_class.__module__.partition(".")[0]}
    named = _arguments(own)
    described: dict[str, str] = {**FIELDS, **(texts or {})}
    fields: dict[str, None] = {}
    # From the base on, so that a class may describe a field anew.
    for base in reversed(config_class.__mro__):
        if base.__module__.partition(".")[0] in packages:
            if base is not config_class:
                described |= _arguments(base.__doc__ or "")
            # Fields of a dataclass are annotated; class variables are no settings.
            kinds = inspect.get_annotations(base)
            fields |= dict.fromkeys(name for name, kind in kinds.items() if "ClassVar" not in str(kind))
    # Private fields and those without a text stay out.
    missing = [name for name in fields if name not in named and name in described and not name.startswith("_")]
    if missing:
        lines = [f"    {name}: {described[name]}" for name in missing]
        config_class.__doc__ = "\n".join([own, "", "Args: Further fields" if named else "Args:", *lines])


_SETTINGS_FILES = ("config.json", "adapter_config.json", "*.index.json", "generation_config.json") + tuple(
    f"{name}_config.json" for name in ("preprocessor", "processor", "tokenizer")
)
# Kinds of values by the names of settings, of any of these files.
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model_type", "peft_type", "processor_class", "tokenizer_class"), (str,)),
    **dict.fromkeys(("feature_extractor_type", "base_model_name_or_path", "revision"), (str,)),
    **dict.fromkeys(("dtype", "torch_dtype"), (str, dict)),
    **dict.fromkeys(
        ("metadata", "weight_map", "id2label", "label2id", "auto_mapping", "quantization_config"), (dict,)
    ),
    "architectures": (list,),
    "num_labels": (int,),
}


@functools.cache
def _arguments(doc: str) -> dict[str, str]:
    """Return the texts of the arguments that a docstring describes, by their names."""
    return dict(_ARGUMENT.findall(inspect.cleandoc(doc)))


@contextmanager
def stored_settings(place: object = None, arguments: Collection[str] = ()) -> Iterator[None]:
    """Name the file, directory or repository of stored settings in errors of what is built from them.

    Settings of an unexpected type fail anywhere and with any error. Without a place, an enclosing call names it.

    Args:
        place: File, directory or repository.
        arguments: Names of the caller's keyword arguments, whose own errors stay as they are.
    """
    try:
        yield
    # The place is not to blame for these.
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except ValueError as error:
        # Subclasses have a meaning that callers test for, and some messages name the place already.
        if type(error) not in (ValueError, JSONDecodeError) or str(place) in str(error):
            raise
        before = "" if place is None else f"{place}: "
        raise ValueError(f"{before}{error}") from error
    # Whatever a setting of the wrong type fails with, in here it is the file's fault.
    except Exception as error:
        if isinstance(error, TypeError) and any(f"argument {name!r}" in str(error) for name in arguments):
            raise
        before = "" if place is None else f"{place}: "
        reason = " ".join(str(error).split())
        raise ValueError(f"{before}cannot be used ({type(error).__name__}: {reason})") from error


def check_stored_files(folder: str | os.PathLike) -> None:
    """Check that the files of a saved model hold settings, of the kinds that are read before its class is known.

    Raises:
        ValueError: One holds something else; names it and what it holds. What only the class of the model knows is
            checked by that class.
    """
    for name in _SETTINGS_FILES:
        for path in sorted(Path(folder).glob(name)):
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except RecursionError:
                raise ValueError(f"{path} is nested too deeply; expected an object of JSON") from None
            except ValueError as error:
                raise ValueError(f"{path} holds no JSON ({error})") from None
            if not isinstance(settings, dict):
                raise ValueError(f"{path} holds {settings!r:.40}; expected an object of JSON")
            for key, kinds in _KINDS.items():
                value = settings.get(key)
                if value is not None and not isinstance(value, kinds):
                    allowed = " or ".join(kind.__name__ for kind in kinds)
                    raise ValueError(f"{path}: {key}={value!r:.40}; expected {allowed}")
            if path.name.endswith(".index.json") and not {"metadata", "weight_map"} <= settings.keys():
                raise ValueError(f"{path} lacks metadata or weight_map; expected both")


def check_settings(
    config: Any, choices: Mapping[str, Collection[Any]] | None = None, ranges: Ranges | None = None
) -> None:
    """Check that fields have one of their `choices`, and numbers are within `COMMON_RANGES` and `ranges`.

    Torch would compute with others, or they would silently mean one of the choices.
    """
    for name, allowed in (choices or {}).items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
    numbers = sorted(map(int, getattr(config, "id2label", None) or ()))
    if numbers != list(range(len(numbers))):  # a class would be answered by the name of its neighbor
        raise ValueError(f"id2label has the numbers {numbers[:8]}; expected those from 0 to {len(numbers) - 1}")
    # Of any model: fields that end so are lists of layers' widths, and shares that are dropped. All would be nothing.
    by_ending: dict[str, tuple[float, float]] = {name: (1, 10**6) for name in vars(config) if name.endswith("_widths")}
    # Some dropouts are switched on or off.
    dropouts = [
        name for name, value in vars(config).items() if name.endswith("dropout") and not isinstance(value, bool)
    ]
    by_ending |= dict.fromkeys(dropouts, (0, 0.99))
    for name, (low, high) in {**COMMON_RANGES, **by_ending, **(ranges or {})}.items():
        # Not getattr: properties are computed from fields, and may fail for wrong ones.
        value = vars(config).get(name)
        if value is None:
            continue
        for number in _flattened(value) if isinstance(value, (list, tuple)) else (value,):
            if not low <= number <= high:
                raise ValueError(f"{name}={number!r:.80}; expected {low:,} to {high:,}")


def _flattened(values: Iterable[Any]) -> list[float]:
    """Return the numbers of a list, or of lists in a list."""
    flat: list[float] = []
    for value in values:
        if value is not None:
            flat += _flattened(value) if isinstance(value, (list, tuple)) else [value]
    return flat


def check_layers(name: str, layers: Collection[int], count: int) -> None:
    """Check the numbers of layers whose outputs are asked for."""
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"{name}={list(layers or ())}; expected some layers, from 0 to {count - 1}")


def check_numbers(
    low: float, high: float = math.inf, /, *, above: bool = False, below: bool = False, **numbers: float | None
) -> None:
    """Check arguments that are numbers: from `low` to `high`, larger than `low` with `above`, smaller with `below`.

    A negative radius, a share in percent or NaN is no error to torch, and empties an answer or turns it round. None
    is an argument that is not given.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        # Written so that NaN, which every comparison refuses, is refused here.
        is_above = number > low if above else number >= low
        is_below = number < high if below else number <= high
        if is_above and is_below:
            continue
        expected = f"above {low:,}" if above else f"at least {low:,}"
        if high < math.inf:
            expected += f" and below {high:,}" if below else f" and at most {high:,}"
        elif below:
            expected += " and finite"
        raise ValueError(f"{name}={number!r:.80}; expected {expected}")


def check_fields(config_class: type[PreTrainedConfig], settings: Mapping[str, Any], method: str) -> None:
    """Refuse settings that a config does not have; it would accept any, without an effect."""
    # An instance, as fields that every config has are set in transformers' own class.
    known = config_class()
    unknown = [name for name in settings if not hasattr(known, name)]
    if unknown:
        raise TypeError(f"{method} has no argument {unknown[0]!r}; expected its own or one of {config_class.__name__}")


def check_built(config: PreTrainedConfig, name: str, method: str) -> None:
    """Check that a config has the field that a method of the model's class sets."""
    if getattr(config, name) is None:
        raise ValueError(f"{name} is missing; build the model with {method}")


class CategoriesConfigMixin:
    """For configs of models that may segment the parts of objects of some categories."""

    @property
    def num_categories(self) -> int:
        """Number of object categories of a part segmentation model."""
        return len(self.category_parts or ())
