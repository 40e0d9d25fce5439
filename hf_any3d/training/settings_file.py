"""Files of settings: JSON or YAML, each perhaps standing on others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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
