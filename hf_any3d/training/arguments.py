"""Arguments of training programs, from a command line or from one JSON or YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

# YAML 1.1 reads 1e-3, which has no dot, as text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def parse_arguments(dataclass_types: Iterable[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Fill dataclasses of arguments.

    Args:
        dataclass_types: The dataclasses, as `HfArgumentParser` takes them.
        argv: The words behind the program's name; a single one that ends in .json, .yaml or .yml is a file with all
            arguments.

    Returns:
        An object of each class.

    Raises:
        ValueError: A file that is no mapping, or that has unknown arguments.
        FileNotFoundError: No such file.
    """
    parser = HfArgumentParser(tuple(dataclass_types))
    if len(argv) != 1 or not argv[0].endswith((".json", ".yaml", ".yml")):
        return parser.parse_args_into_dataclasses(list(argv))
    path = Path(argv[0])
    try:
        values = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected names and values of arguments")
    texts = {name for kind in parser.dataclass_types for name in _text_fields(kind)}
    values = {
        name: value if name in texts and isinstance(value, str) else _numbers(value) for name, value in values.items()
    }
    try:
        return parser.parse_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def json_mapping(value: str | dict | None, name: str) -> dict[str, Any]:
    """A mapping from the JSON text of a command line, or from what a file gives.

    Raises:
        ValueError: Anything else; `name` is the argument's.
    """
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError as error:
        raise ValueError(f"--{name} {value!r} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"--{name} {value!r}; expected a JSON object such as '{{\"key\": 1}}'")
    return value


def _text_fields(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    return [field.name for field in fields(kind) if str in (hints[field.name], *get_args(hints[field.name]))]


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
