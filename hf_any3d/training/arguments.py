"""Arguments of training programs, from a command line, from a JSON or YAML file, or from both."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser

from hf_any3d.training.settings_file import FILE_TYPES, merge, numbers, read_settings


def parse_arguments(
    dataclass_types: Iterable[type], argv: Sequence[str], *, others_in_file: bool = False
) -> tuple[Any, ...]:
    """Fill dataclasses of arguments.

    Args:
        dataclass_types: The dataclasses, as `HfArgumentParser` takes them.
        argv: The words behind the program's name. A first one that ends in .json, .yaml or .yml is a file of
            arguments, see `read_settings`; words behind it win over the file. JSON objects among them are merged
            with the file's: `recipe.yaml --dataset_options '{"fold": 3}'` leaves the other options as they are.
        others_in_file: Pass over what a file holds for other dataclasses.

    Returns:
        An object of each class.

    Raises:
        ValueError: A file that is no mapping, or that has unknown arguments.
        FileNotFoundError: No such file.
    """
    parser = HfArgumentParser(tuple(dataclass_types))
    if not argv or not argv[0].endswith(FILE_TYPES):
        return parser.parse_args_into_dataclasses(list(argv))
    path = Path(argv[0])
    texts = {name for kind in parser.dataclass_types for name in _text_fields(kind)}
    values = {
        name: value if name in texts and isinstance(value, str) else numbers(value)
        for name, value in read_settings(path).items()
    }
    known = {field.name for kind in parser.dataclass_types for field in fields(kind) if field.init}
    if others_in_file:
        values = {name: value for name, value in values.items() if name in known}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path}: no program argument is called {', '.join(map(repr, unknown))}")
    return parser.parse_dict(_with_words(values, parser, argv[1:]))


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


def _with_words(values: dict[str, Any], parser: HfArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    # Without defaults the namespace holds what was said, and nothing else.
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    said = vars(parser.parse_args(list(words)))
    for name, value in said.items():
        if isinstance(values.get(name), dict) and isinstance(value, str):
            value = merge(values[name], json_mapping(value, name))
        values = {**values, name: value}
    return values


def _text_fields(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    return [field.name for field in fields(kind) if str in (hints[field.name], *get_args(hints[field.name]))]
