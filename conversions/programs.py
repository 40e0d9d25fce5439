"""Recognize the program that wrote a checkpoint by the names of its tensors, with the settings that they show.

`hf-any3d convert` and `hf_any3d.published` read this. A new program is in the record of its model's folder; see
`hf_any3d.modeling.records`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from huggingface_hub import ModelCard

from hf_any3d.conversions.checkpoints import read_checkpoint, read_entries, read_json
from hf_any3d.conversions.origin import UNKNOWN, known_origin
from hf_any3d.conversions.point_starts import start_of
from hf_any3d.conversions.renaming import matches_some
from hf_any3d.conversions.tensor_checks import listed
from hf_any3d.modeling.records import Converter, Program
from hf_any3d.registry import MODEL_TYPES, RECORDS, is_own

ENTRIES = ("state_dict", "module", "model", "base_model", "model_state_dict")
"""Keys under which the programs store their tensors."""
CONVERTERS: dict[str, Converter] = {
    name: converter for record in RECORDS.values() for name, converter in record.converters.items()
}
"""By the public functions of `hf_any3d.conversions`."""


def _programs() -> Iterator[Program]:
    """Yield the programs of all records, with the full names of their recognizers."""
    for package, record in RECORDS.items():
        for program in record.programs:
            if program.recognizer is not None and is_own(package):
                yield replace(program, recognizer=f"{__package__}.{program.recognizer}")
            else:
                yield program


PROGRAMS = tuple(_programs())
"""The first row that accepts a file counts."""
# Files of programs whose models are not built here, by a mark that no other file has.
_REFUSED = {mark: name for record in RECORDS.values() for mark, name in record.refused.items()}
# By the model type in their config.
_DIRECTORIES = {kind: program for record in RECORDS.values() for kind, program in record.directories.items()}


@dataclass(frozen=True)
class Recognized:
    """A file or directory, and the kind of checkpoint in it."""

    path: Path
    program: Program
    settings: Mapping[str, Any] = field(default_factory=dict)


def settings_of(program: Program, names: Collection[str]) -> Mapping[str, Any] | None:
    """Return the arguments that tensors of these names show, or None if they are not of the program."""
    if program.recognizer is not None:
        return resolve_name(program.recognizer)(names)
    for mark, settings in program.marks.items():
        if matches_some(mark, names):
            return settings
    return None


def recognize(path: str | os.PathLike) -> Recognized:
    """Find out which program wrote a file or directory.

    Raises:
        ValueError: The tensors are those of no program that is known; names some.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if path.is_dir():
        # A directory says what it is; only for single files do names of tensors have to tell.
        config = path / "config.json"
        kind = read_json(config).get("model_type") if config.is_file() else None
        if kind in _DIRECTORIES:
            return Recognized(path, _DIRECTORIES[kind])
        if kind in MODEL_TYPES:
            raise ValueError(f"{path}: a model of this package, which needs no conversion; give its authors' files")
        seen = "no config.json" if kind is None else f"model_type {kind!r}"
        raise ValueError(f"{path}: a directory with {seen}; expected one of {', '.join(_DIRECTORIES)}")
    state = read_checkpoint(path, ENTRIES)
    # Before the known programs, whose layers they may share.
    for mark, name in _REFUSED.items():
        if matches_some(mark, state):
            raise ValueError(f"{path}: a model of {name}, for which there is no class here; it cannot be converted")
    # Relatives of ACT, whose names it shares.
    if start := start_of(state.keys()):
        owner = next((program for program in PROGRAMS if program.title == start.system), None)
        if owner is None or start.kind is None:
            raise ValueError(
                f"{path}: {start.described} of {start.system}, which has no class here; it cannot be converted"
            )
        return Recognized(path, owner, {"kind": start.kind})
    for program in PROGRAMS:
        settings = settings_of(program, state.keys())
        has_entry = program.entry is None or program.entry in read_entries(path)
        if settings is not None and has_entry:
            return Recognized(path, program, settings)
    titles = dict.fromkeys(program.title for program in PROGRAMS)
    raise ValueError(
        f"{path}: unrecognized checkpoint; its tensor names match none of {', '.join(titles)}: "
        f"{listed(sorted(state)[:5])}"
    )


def plan(paths: Sequence[str | os.PathLike]) -> tuple[str, dict[str, Any]]:
    """Choose the conversion of files that belong together.

    Args:
        paths: The authors' files, in any order, such as a model and its head.

    Returns:
        Name of a public function of `hf_any3d.conversions`, and the arguments that the files give it.
    """
    # Of stages of a training; files that look alike keep the order in which they were given.
    recognized = sorted(map(recognize, paths), key=lambda file: file.settings.get("order", 0))
    first = recognized[0]
    arguments: dict[str, Any] = {}
    for file in recognized:
        program = file.program
        if program.convert != first.program.convert:
            raise ValueError(
                f"{file.path}: a file of {program.title}, but {first.path} is one of {first.program.title}; convert "
                "them one after the other"
            )
        role = program.role
        settings = dict(file.settings)
        # Of stages there may be two files; of each other part one.
        if settings.pop("order", None) is not None and role in arguments:
            role = "second_checkpoint"
        if role in arguments:
            raise ValueError(f"{file.path}: one file of {program.title} too many, as {role}; expected one")
        # Settings that a file shows are arguments too, such as its variant.
        arguments |= {role: file.path, **settings}
    converter = CONVERTERS[first.program.convert]
    # Published parts of a system can be put together without a file of the whole.
    if converter.of_parts is not None and "checkpoint" not in arguments:
        return converter.of_parts, arguments
    missing = [role for role in converter.needs if role not in arguments]
    if missing:
        raise ValueError(f"{first.path}: {first.program.title} lacks {' and '.join(missing)}; give these files too")
    return first.program.convert, arguments


def plan_with(files: Sequence[str | os.PathLike], options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Choose the conversion of files that belong together, see `plan`, where options may say which one it is."""
    # Some options belong to one conversion alone, which is then known before a file is read.
    named = next((name for name, converter in CONVERTERS.items() if converter.chosen_by in options), None)
    if named is None or len(files) > 1:
        # Several files are told apart by their tensors, whatever their order.
        return plan(files)
    return named, {"checkpoint": files[0]}


def convert_files(
    files: Sequence[str | os.PathLike], output: str | os.PathLike, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert files that belong together by the conversion that fits.

    Args:
        files: The authors' files, in any order.
        output: Directory to create.
        options: Arguments of the conversion that the files do not show.

    Returns:
        What the conversion tells of the model that it saved.

    Raises:
        ValueError: Files of no program that is known, or an option that is not for them.
    """
    name, arguments = plan_with(files, options)
    # Each conversion takes options of its own; one without effect would be a silent mistake.
    allowed = CONVERTERS[name].takes.keys()
    if unused := sorted(options.keys() - allowed):
        title = next(program.title for program in PROGRAMS if name.startswith(program.convert))
        expected = _listed_options(allowed) or "none"
        raise ValueError(f"{_listed_options(unused)}: not for a file of {title}; expected {expected}")
    # What the owner of the files states of them, besides their tensors.
    options = dict(options)
    known = {}
    for option in ("classes", "license"):
        if option in options:
            known[option] = options.pop(option)
    with known_origin(**known, recognized=frozenset(arguments)):
        facts = resolve_name(f"{__package__}:{name}")(output=output, **{**arguments, **options})
    return facts | _unknown_facts(Path(output), allowed)


def _listed_options(names: Collection[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def _unknown_facts(directory: Path, allowed: Collection[str]) -> dict[str, Any]:
    """Return the unknown facts of a converted model, `license` and `unnamed` classes, with the options to set them."""
    facts: dict[str, Any] = {}
    card, config = directory / "README.md", directory / "config.json"
    # Parts of a model have become a directory each, with a card in each.
    if not card.is_file():
        return facts
    if ModelCard.load(card).data.get("license") == UNKNOWN:
        facts["license"] = UNKNOWN
    names = {}
    if config.is_file():
        names = read_json(config).get("id2label") or {}
    if names and all(name == f"LABEL_{number}" for number, name in names.items()):
        options = " or ".join(f"--{name}" for name in ("dataset", "classes") if name in allowed)
        facts["unnamed"] = f"names of its {len(names)} classes are not known: LABEL_0 and so on; give {options}"
    return facts


def summary_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a conversion returns as lines for people."""
    for file, stage in facts.get("stages", {}).items():
        yield f"{file}: {stage}"
    for file, (used, left_out) in facts.get("tensors", {}).items():
        line = f"{file}: {used} tensors used"
        if left_out:
            others = ", ".join(f"{count} of {name}" for name, count in left_out.items())
            line += f"; left out, not in the model: {others}"
        yield line
    if facts.get("fresh"):
        yield f"no file has {', '.join(facts['fresh'])}; they are initialized as training does"
    if facts.get("left_out"):
        yield f"left out, no part of the encoder: {', '.join(facts['left_out'])}"
    # Files of the parts of a model have become a directory each.
    if isinstance(facts.get("parameters"), Mapping):
        for part, parameters in facts["parameters"].items():
            yield f"{Path(facts['output']) / part}: {parameters:,} parameters"
        return
    yield f"{facts['output']}: {', '.join(_described_model(facts))}"
    if facts.get("unnamed"):
        yield facts["unnamed"]
    if facts.get("license") == UNKNOWN:
        yield "license of the weights is not known: fill it in the card, or give --license"


def _described_model(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the class of a converted model, its sizes and the encoders in it."""
    if "model" in facts:
        yield facts["model"]
    for name in ("trained_parameters", "parameters"):
        if name in facts:
            yield f"{facts[name]:,} {name.replace('_', ' ')}"
    if "bytes" in facts:
        yield f"{facts['bytes'] / 1e6:,.1f} MB"
    for part in ("encoder", "teacher"):
        if facts.get(part) is not None:
            yield f"{part} {facts[part]}"
