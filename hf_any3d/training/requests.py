"""Requests of trainings: dataclasses of arguments, built and checked from words, recipes or values by name."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, cast, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_any3d.training.arguments import check_ranges, json_mapping
from hf_any3d.training.recipes import FILE_TYPES, merge, read_recipe
from hf_any3d.training.sources import OPTIONS_OF_COMMAND

logger = logging.getLogger(__name__)

_NAMES_OF_TYPES = {bool: "True or False", int: "a number", float: "a number", list: "a list"}


def parse_arguments(
    dataclass_types: Iterable[type], argv: Sequence[str], *, others_in_file: bool = False
) -> tuple[Any, ...]:
    """Parse dataclasses of arguments from the words after a program's name.

    A first word that ends in .json, .yaml or .yml is a recipe, see `read_recipe`, which the other words override.
    """
    kinds = tuple(dataclass_types)
    words = list(argv)
    # Only the first word can be a recipe; later ones that end like a file are values of options.
    recipe = read_recipe(Path(words.pop(0)), kinds, others_in_file) if words and words[0].endswith(FILE_TYPES) else {}
    return build_arguments(kinds, read_words(kinds, words), recipe)


def refuse_twice(given: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Refuse an argument that is given twice, by its option of `hf-any3d train` and by its own name."""
    twice = sorted(named.keys() & given.keys())
    if twice:
        short = OPTIONS_OF_COMMAND.get(twice[0], twice[0].replace("_", "-"))
        raise ValueError(f"--{short} and --{twice[0]} are the same option; give one of them")


class ArgumentsParser(HfArgumentParser):
    """Parser of dataclasses of arguments: errors are exceptions, and flags `--no_x` have texts of their own."""

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Add an argument; a flag that switches another one off has a text of its own."""
        if settings.get("action") == "store_false":
            settings["help"] = f"Switch --{settings['dest']} off."
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError in place of the end of the program."""
        raise ValueError(message)


def read_words(dataclass_types: Iterable[type], words: Sequence[str], listed_by: str = "--help") -> dict[str, Any]:
    """Return the arguments that words of a command line name, with values of the types of the dataclasses' fields.

    Of fields of the same name the last one counts. An error of an unknown name has the most similar one, and
    `listed_by`, the command that lists all options.
    """
    # Shortened names are refused: what they stand for would depend on all other options.
    parser = ArgumentsParser(tuple(dataclass_types), conflict_handler="resolve", allow_abbrev=False)  # pyright: ignore[reportArgumentType] it declares a NewType
    # Required arguments may come from the recipe, so the command line is not complete by itself.
    for action in parser._actions:
        action.required = False
    # A mark of its own: None and False are values that may be given.
    unset = object()
    namespace = argparse.Namespace(**{action.dest: unset for action in parser._actions})
    _, unknown = parser.parse_known_args(list(words), namespace)
    if unknown:
        name = unknown[0].partition("=")[0]
        # Closest by its letters, as most unknown options are typing errors.
        names = [action.dest for action in parser._actions]
        similar = difflib.get_close_matches(name.removeprefix("--").replace("-", "_"), names, n=1)
        hint = f"; did you mean --{similar[0]}?" if similar else ""
        raise ValueError(f"no option {name}{hint} ({listed_by})")
    # Defaults are left out, as they would override a recipe.
    return {name: value for name, value in vars(namespace).items() if value is not unset}


def build_arguments(
    dataclass_types: Iterable[type], settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """Build dataclasses of arguments from values by name.

    JSON objects are merged with the recipe's: `recipe.yaml --dataset_options '{"fold": 3}'` keeps the other options.
    Settings of the recipe's model are left out if another one is requested: `recipe.yaml --model_type pointnet`; those
    of its PEFT method likewise: `recipe.yaml --peft lora`.
    """
    kinds = tuple(dataclass_types)
    values = dict(recipe or {})
    for kind in kinds:
        # A recipe describes one model. With another one in the command line, its settings of the model would be
        # errors, but those of data and training still hold.
        foreign = kind.of_another_model(values, settings) if hasattr(kind, "of_another_model") else set()
        dropped = sorted(foreign & set(values))
        if dropped:
            logger.info("%s of the recipe describe another model or method and are left out", ", ".join(dropped))
            values = {name: value for name, value in values.items() if name not in dropped}
    for name, value in settings.items():
        if isinstance(values.get(name), dict) and isinstance(value, str):
            value = merge(values[name], json_mapping(value, name))
        values[name] = value
    # Types are checked before dataclasses are built, whose own checks expect the right ones.
    for kind in kinds:
        _check_types(kind, values)
    built = HfArgumentParser(kinds).parse_dict(values)  # pyright: ignore[reportArgumentType] it declares a NewType
    for arguments in built:
        check_ranges(arguments)
    return built


def _check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Check values that Python or a file gives for numbers, booleans and lists: any text would count as true."""
    hints = get_type_hints(kind)
    for name in values.keys() & {entry.name for entry in fields(kind) if entry.init}:
        value = values[name]
        allowed = set(get_args(hints[name]) or (hints[name],))
        if get_origin(hints[name]) is list:
            allowed = {list}
        # An error names one of the plain types that the field allows.
        wanted = [plain for plain in (bool, int, float, list) if plain in {get_origin(one) or one for one in allowed}]
        if isinstance(value, str) and wanted and str not in allowed:
            raise ValueError(f"--{name} is the text {value!r:.80}; expected {_NAMES_OF_TYPES[wanted[0]]}")
        # 0 and 1 equal False and True, and are allowed.
        if wanted == [bool] and str not in allowed and value not in (True, False, None):
            raise ValueError(f"--{name} is {value!r:.80}; expected {_NAMES_OF_TYPES[bool]}")


class Request:
    """Request of a training: a dataclass whose fields are dataclasses of arguments."""

    def __post_init__(self):
        """Check the arguments, also where Python gives the dataclasses themselves."""
        for entry in fields(cast(Any, self)):
            arguments = getattr(self, entry.name, None)
            if is_dataclass(arguments) and not isinstance(arguments, type):
                _check_types(type(arguments), vars(arguments))
                check_ranges(arguments)

    @classmethod
    def argument_classes(cls) -> tuple[type, ...]:
        """Return the dataclasses of the arguments."""
        hints = get_type_hints(cls)
        return tuple(hints[entry.name] for entry in fields(cls) if entry.init)  # pyright: ignore[reportArgumentType] a dataclass

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Self:
        """Build a request from values by name, see `build_arguments`."""
        return cls(*build_arguments(cls.argument_classes(), settings, recipe))

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None) -> Self:
        """Build a request from words of a command line, see `parse_arguments`; by default those of this process."""
        return cls(*parse_arguments(cls.argument_classes(), sys.argv[1:] if argv is None else argv))


class ExtensionRequest(Request):
    """Request of an extension to learn data in a way of its own; its `arguments` name the `output_dir`."""

    arguments: Any

    def learn(self, paths: Sequence[str | Path]) -> Any:
        """Learn, save the model, and return `few_scans.training.Learned`.

        Args:
            paths: Files of labeled points and folders of them; none where the data are others.
        """
        raise NotImplementedError
