"""Recipes, files of arguments: YAML or JSON that may extend others, within limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

FILE_TYPES = (".json", ".yaml", ".yml")
BASES = "extends"
# Of a file of arguments; the longest recipe of the package has some forty values.
_LARGEST_FILE, _MOST_VALUES, _DEEPEST = 2**18, 10_000, 50
# YAML 1.1 reads 1e-3, which has no dot, as text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_recipe(path: Path, dataclass_types: Iterable[type], others_in_file: bool = False) -> dict[str, Any]:
    """Read a file of arguments, see `read_settings`; those of no dataclass are errors unless `others_in_file`."""
    kinds = tuple(dataclass_types)
    # A text such as 1e-3 can be the name of a model or a directory, so arguments of text keep it as it is.
    hints: dict[str, Any] = {}
    names = set()
    for kind in kinds:
        hints |= get_type_hints(kind)
        names.update(field.name for field in fields(kind) if field.init)
    texts = {name for name, hint in hints.items() if str in (hint, *get_args(hint))}
    values = {}
    for name, value in read_settings(path).items():
        is_kept = name in texts and isinstance(value, str)
        values[name] = value if is_kept else _parse_exponents(value)
    unknown = sorted(set(values) - names)
    if unknown and not others_in_file:
        raise ValueError(f"{path}: no program argument is called {', '.join(map(repr, unknown))}")
    return {name: value for name, value in values.items() if name in names}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of names and values.

    A file may name another one, or a list of them, under `extends`, by paths relative to its folder. Their values are
    overridden by later files of the list, and by its own. Mappings are merged key by key; all other values, including
    lists, are replaced.

    Raises:
        ValueError: If it holds something else, extends itself, or its aliases stand for more than `_MOST_VALUES`.
    """
    return _with_bases(Path(path), (), {})


def _with_bases(path: Path, extended_by: tuple[Path, ...], read: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Read a file and those that it extends, each once; those of `extended_by` are being read."""
    # Links are resolved: the same file by another name is a circle too.
    place = path.resolve()
    if place in (file.resolve() for file in extended_by):
        raise ValueError(f"{path}: extends itself, by {' and '.join(map(str, extended_by))}")
    if len(extended_by) == _DEEPEST:
        raise ValueError(f"{path} is extended over {_DEEPEST} files; expected fewer")
    # A base that several files extend is read once.
    if place in read:
        return read[place]
    values = _read_values(path)
    bases = values.pop(BASES, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASES} is {bases!r:.100}; expected the path of a file, or a list of them")
    below: dict[str, Any] = {}
    for base in bases:
        # Paths are relative to the file that names them, not to the working directory.
        below = merge(below, _with_bases(path.parent / base, (*extended_by, path), read))
    read[place] = merge(below, values)
    return read[place]


def _read_values(path: Path) -> dict[str, Any]:
    # A wrong file, such as a model's weights, is told before it is read to memory.
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"{path} has {size:,} bytes; a file of arguments has at most {_LARGEST_FILE:,}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text)
            _check_extent(values)
            return dict(values)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        # Before aliases are followed, as they count with all that they stand for.
        _check_extent(node)
        return dict(loader.construct_document(node))
    except (ValueError, TypeError, RecursionError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected names and values of arguments ({error})") from error


def _check_extent(content: Any) -> None:
    """Check how many values JSON or the nodes of YAML hold, and how deep they are."""
    waiting = [(content, 0)]
    count = 0
    # A stack in place of recursion, which deep nesting would overflow.
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"more than {_MOST_VALUES:,} values, or lists more than {_DEEPEST} deep")
        # Nodes of YAML hold lists of nodes, or of pairs of nodes; values of JSON are lists and dicts.
        inner = value.value if isinstance(value, yaml.CollectionNode) else value
        if isinstance(inner, dict):
            # Names of a mapping count as well as its values.
            inner = list(inner.items())
        if isinstance(inner, (list, tuple)):
            waiting += [(item, depth + 1) for item in inner]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings; values of `above` win, lists too, and mappings in both are merged."""
    # Mappings on both sides are merged key by key, so that one option is overridden and the others stay.
    merged = {**below, **above}
    for key, value in above.items():
        if isinstance(below.get(key), Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below[key], value)
    return merged


def _parse_exponents(value: Any) -> Any:
    """Convert text such as 1e-3 to numbers, also inside lists and mappings."""
    if isinstance(value, dict):
        return {key: _parse_exponents(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_parse_exponents(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
