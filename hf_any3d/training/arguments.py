"""Arguments of training programs, from a command line, from a JSON or YAML file, or from both."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

FILE_TYPES = (".json", ".yaml", ".yml")
BASES = "extends"
# YAML 1.1 reads 1e-3, which has no dot, as text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of names and values.

    A file may name another one, or a list of them, under `extends`, by paths from its own folder. It starts from
    their values, later files of the list winning over earlier ones, and its own values win over all of them.
    Mappings are merged key by key; everything else, lists too, is replaced.

    Raises:
        ValueError: A file that is no mapping, or that stands on itself.
        FileNotFoundError: No such file.
    """
    return _read(path, ())


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of two mappings; where both have one, that of `above`, and of mappings in both, their merger."""
    both = {key: merge(below[key], value) for key, value in above.items() if _are_mappings(below.get(key), value)}
    return {**below, **above, **both}


def numbers(value: Any) -> Any:
    """Turn text such as 1e-3 into the number it stands for, also inside lists and mappings."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ValueError(f"{path}: {BASES!r} leads back to this file; expected files that end somewhere")
    values = _parse(path)
    bases = values.pop(BASES, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASES!r} is {bases!r}; expected the path of a file or a list of paths")
    below: dict[str, Any] = {}
    for base in bases:
        file = path.parent / base
        if not file.is_file():
            raise FileNotFoundError(f"{path}: {BASES!r} names {base!r}, but there is no file {file}")
        below = merge(below, _read(file, (*readers, path.resolve())))
    return merge(below, values)


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected names and values of arguments")
    return values


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


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
