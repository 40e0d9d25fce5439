"""A model declares itself: few files outside its own name it, and a record imports nothing that takes time."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from hf_any3d.registry import RECORDS, TASKS
from tests.test_house_rules import files_of, imported_by, relative

MOST = 7
"""Files elsewhere that may name a model: at least the registry, and those in which it is the example of an option.

Files of another model that is built on it are not counted.
"""
# Tables that name models by what they are for: files of relatives, and stored directories of this repository.
_SHARED = {"conversions/point_starts.py", "conversions/stored_settings.py"}
# Words of other meanings too, which alone do not name a model.
_PLAIN_WORDS = {"act", "point_features"}


CORE = [package for package in RECORDS if package.startswith("hf_any3d.")]
"""Packages with models, without those of extensions, of which no file here knows."""


def own_places(package: str) -> set[str]:
    """Beginnings of the paths of a model's own files: its folder, conversions, processors, and tasks of it alone."""
    record = RECORDS[package]
    places = {f"{package.removeprefix('hf_any3d.').replace('.', '/')}/"} | {
        f"conversions/{one.module.split('.')[0]}" for one in record.converters.values()
    }
    modules = {kind.processor.rpartition(".")[0] for kind in record.model_types.values()}
    shared = {"hf_any3d.processing.point_clouds"}
    places |= {f"{module.replace('.', '/')}.py" for module in modules - shared}
    return places | {
        f"{task.package.replace('.', '/')}/" for task in TASKS.values() if {*task.models} & {*record.model_types}
    }


def names_of(package: str) -> tuple[re.Pattern, set[str]]:
    """A pattern of all that names a model: module, model types, classes, conversions, methods, released files.

    Also words in small letters of which every match has one: they are found in a hundredth of the time.
    """
    record, folder = RECORDS[package], package.rpartition(".")[2]
    kinds = record.model_types.values()
    classes = {kind.config.removesuffix("Config") for kind in kinds} | {
        config.removesuffix("Config") for config in record.encoders
    }
    methods = {method.name for kind in kinds for method in (kind.method, *kind.methods.values()) if method}
    methods = {name for name in methods | {program.title for program in record.programs} if " features" not in name}
    repositories = {name.partition("/")[2] for name in record.published}
    words = sorted(map(re.escape, {folder, *record.model_types} - _PLAIN_WORDS))
    parts = [rf"(?<![A-Za-z0-9])(?i:{word})(?![A-Za-z0-9])" for word in words]
    parts += [rf"(?<![A-Za-z]){name}(?=Config|For|Model|PreTrained|Processor)" for name in sorted(classes)]
    parts += [rf"(?<![\w-]){re.escape(name)}(?!\w)" for name in sorted(methods | repositories)]
    parts += [rf"\b{name}\b" for name in record.converters] + [rf"\b(?:modeling|conversions)\.{folder}\b"]
    known = {folder, *record.model_types} - _PLAIN_WORDS | classes | methods | repositories | {*record.converters}
    return re.compile("|".join(parts)), {word.lower() for word in known} | {
        f"modeling.{folder}",
        f"conversions.{folder}",
    }


def code_of(source: str) -> str:
    """The source without comments and docstrings, in which models are cited."""
    cited: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text:
            cited.update(range(node.lineno, node.end_lineno + 1))
    text = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT and token.start[0] not in cited:
            text += token.string if token.string in "." or text.endswith(".") else f" {token.string}"
    return text


@pytest.fixture(scope="module")
def code() -> dict[str, tuple[str, str]]:
    """The code of each file, as it is and in small letters."""
    found = {}
    for file in files_of("hf_any3d", "modeling", "conversions"):
        text = code_of(file.read_text(encoding="utf-8"))
        found[relative(file)] = text, text.lower()
    return found


@pytest.mark.parametrize("package", CORE)
def test_few_files_elsewhere_name_a_model(package, code):
    (names, words), own = names_of(package), tuple(own_places(package))
    others = {file: text for file, (text, small) in code.items() if any(word in small for word in words)}
    naming = {file for file, text in others.items() if not file.startswith(own) and names.search(text)} - _SHARED
    for other in CORE:
        # Whatever imports its classes is made of them.
        places = tuple(own_places(other))
        theirs = {file for file in naming if file.startswith(places)}
        if any(package.removeprefix("hf_any3d.") in code[file][1] for file in theirs):
            naming -= theirs
    print(package, len(naming), *sorted(naming), sep="\n    ")
    assert len(naming) <= MOST, sorted(naming)


@pytest.mark.parametrize("package", RECORDS)
def test_a_record_imports_nothing_but_what_it_is_made_of(package):
    file = sys.modules[f"{package}.about"].__file__
    imported = set(imported_by(ast.parse(Path(str(file)).read_text(encoding="utf-8"))))
    assert {name.rpartition(".")[0] for name in imported} <= {
        "hf_any3d.modeling.records",
        "dataclasses",
        "collections.abc",
        "typing",
    }
