"""Defaults of models, adapters, training and public functions, and the tables that formats and papers give.

After intended changes: `python -m tests.test_defaults` writes those of functions and tables anew.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from peft import PeftConfig
from transformers import PreTrainedConfig

import hf_any3d
from hf_any3d.modeling import minigpt3d
from hf_any3d.training import arguments, minigpt3d_stages, models, pretraining
from tests.mutation.mutants import LIMITS, ROOT, source_files

# Intended changes of defaults are made here too; values come from the paper or the released program.
STORED = json.loads(Path(__file__).with_name("defaults.json").read_text(encoding="utf-8"))


def _classes() -> dict[str, type]:
    """Return public configurations and arguments by name."""
    found = {}
    modules = (hf_any3d, minigpt3d, arguments, minigpt3d_stages, models, pretraining)
    for module in modules:
        for name in dir(module):
            value = getattr(module, name)
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__.startswith("hf_any3d"):
                if issubclass(value, (PreTrainedConfig, PeftConfig)) or name.endswith("Arguments"):
                    found[name] = value
    return found


def _defaults(cls: type) -> dict[str, object]:
    """Return the defaults of the fields that this package defines."""
    own = set()
    for base in cls.__mro__:
        if base.__module__.startswith("hf_any3d"):
            own |= set(base.__dict__.get("__annotations__", ()))
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.name in own:
            made = field.default_factory is not dataclasses.MISSING
            value = field.default_factory() if made else field.default
            defaults[field.name] = "required" if value is dataclasses.MISSING else value
    return json.loads(json.dumps(defaults, default=str))


@pytest.mark.parametrize("name", sorted(_classes()))
def test_defaults_are_the_stored_ones(name):
    assert _defaults(_classes()[name]) == STORED[name]


def test_every_stored_class_is_still_there():
    assert sorted(STORED) == sorted(_classes())


# Of public functions, and the tables of conversions, which are facts of released programs. Left out is what no saved
# file, published number or caller relies on: how pictures and pages look, how much is computed, read or waited for
# together (constants named so), private functions. Other lists stand once, where they are.
_LOOKS = ("hf_any3d/visualization/", "hf_any3d/demo/", "modeling/kernels/")
_TABLES = "conversions/"
FACTS = Path(__file__).with_name("facts.json")
_STORED_FACTS = json.loads(FACTS.read_text(encoding="utf-8"))


def _modules() -> list[str]:
    paths = (path.relative_to(ROOT).as_posix() for path in source_files())
    return [path for path in paths if not path.startswith(_LOOKS) and not path.endswith(("__main__.py", "_child.py"))]


def _plain(value: object) -> object:
    """Return the numbers of a value in a form for JSON; a mark for functions, classes and the like."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(_plain(key)): plain for key, entry in value.items() if _holds_number(plain := _plain(entry))}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [plain for entry in value if _holds_number(plain := _plain(entry))]
    return "…"


def _holds_number(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_number, value.values()))
    if isinstance(value, list):
        return any(map(_holds_number, value))
    return isinstance(value, (bool, int, float))


def _facts(path: str) -> dict[str, object]:
    """Return the defaults of a module's public functions, and the numbers in the tables of a conversion."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(name if name.startswith("hf_any3d") else f"hf_any3d.{name}")
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    assigned = {ast.unparse(target) for statement in body for target in getattr(statement, "targets", ())}
    assigned |= {ast.unparse(statement.target) for statement in body if isinstance(statement, ast.AnnAssign)}
    found: dict[str, object] = {}
    for key, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if inspect.isfunction(value) and own:
            found |= _arguments(key, value)
        elif inspect.isclass(value) and own and key not in STORED:
            for member, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not member.startswith("_") or member == "__init__"):
                    found |= _arguments(f"{key}.{member}", function)
        elif (
            path.startswith(_TABLES)
            and key in assigned
            and key.isupper()
            and LIMITS.isdisjoint(key.split("_"))
            and not isinstance(value, ModuleType)
        ):
            found[key] = _plain(value)
    return {key: value for key, value in found.items() if _holds_number(value)}


def _arguments(name: str, function: object) -> dict[str, object]:
    if name.startswith("_"):
        return {}
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: _plain(p.default) for p in parameters if p.default is not p.empty}
    return {f"{name}({argument})": value for argument, value in given.items() if value is not None}


@pytest.mark.parametrize("path", _modules())
def test_numbers_of_a_module_are_the_stored_ones(path):
    stored, found = _STORED_FACTS.get(path, {}), _facts(path)
    assert {name: found.get(name) for name in stored} == stored  # what is new is stored with the next intended change


def test_every_module_with_stored_numbers_is_still_there():
    assert set(_STORED_FACTS) <= set(_modules())


if __name__ == "__main__":
    # A line a fact, so that differences can be read.
    modules = {path: found for path in _modules() if (found := _facts(path))}
    blocks = []
    for path, found in modules.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
        blocks.append(f" {json.dumps(path)}: {{\n{lines}\n }}")
    FACTS.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
