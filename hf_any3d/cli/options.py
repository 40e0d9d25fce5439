"""Options that several commands have, and how a command gets groups of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer


def option(help: str, *names: str, **arguments: Any) -> Any:
    """Make an option whose help has no default, since that is None or named in the text."""
    return typer.Option(*names, help=help, show_default=False, **arguments)


def output_option(help: str, *names: str, **arguments: Any) -> Any:
    """Make an option of a file or folder that is written: `checking_outputs` finds it by `writable`."""
    return option(help, *names, writable=True, **arguments)


Model = Annotated[
    str | None,
    option("Directory or Hub name of the model; a first argument that is a model is taken as this option."),
]
Classifier = Annotated[str | None, option("Directory or Hub name of a classifier; by default the bundled one.")]
Embedder = Annotated[
    str | None, option("Directory or Hub name of a model that returns features; by default the bundled encoder.")
]
Device = Annotated[str | None, option("Device: cpu, cuda, cuda:1, mps, …; by default the fastest one available.")]
Revision = Annotated[str | None, option("Branch, tag or commit of the model on the Hub.")]
Template = Annotated[
    str | None, option("Name of a chat template of the processor, such as demo; by default its default template.")
]
AllowedHost = Annotated[
    list[str] | None,
    option(
        "Hostname to accept besides localhost, such as example.org behind a proxy; * accepts any. Can be repeated."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
BatchSize = Annotated[
    int | None,
    option(
        "Point clouds per batch; by default 8, or 1 for models whose prediction depends on the other clouds in the "
        "batch.",
        min=1,
    ),
]
DataDir = Annotated[str | None, option("Directory with the files of a catalog dataset.")]


class LengthUnit(StrEnum):
    """Units that can be given for files without one."""

    METERS = "meters"
    FEET = "feet"
    US_FEET = "us-feet"


class Axis(StrEnum):
    """Axes of coordinates."""

    X = "x"
    Y = "y"
    Z = "z"


class Direction(StrEnum):
    """Directions that may point up."""

    X = "x"
    Y = "y"
    Z = "z"
    MINUS_X = "-x"
    MINUS_Y = "-y"
    MINUS_Z = "-z"


UnitOfFiles = Annotated[
    LengthUnit | None,
    option(
        "Unit of files that do not state one: meters, feet (international) or us-feet (US survey feet); by default "
        "meters.",
        "--unit",
    ),
]
FileType = Annotated[
    str | None,
    option(
        "Format of all files and of standard input, such as kitti; by default taken from the extension or the content."
    ),
]


LabelField = Annotated[
    str | None,
    option(
        "Attribute with the label of each point (LAS dimension, PLY property, PCD field or array name), or a "
        "column number, counted from 1, in text files without a header; by default a common name such as label."
    ),
]


@dataclass(frozen=True)
class FileOptions:
    """Options of the commands that print a row for each file."""

    file_type: FileType = None
    as_json: AsJson = False
    as_csv: AsCsv = False


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of its arguments that are dataclasses."""
    # Resolved, since annotations are texts in modules that postpone their evaluation.
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    for name, hint in hints.items():
        # A dataclass that is made when the program runs is behind the type that checkers see.
        for kind in (hint, *getattr(hint, "__metadata__", ())):
            if isinstance(kind, type) and is_dataclass(kind):
                groups[name] = kind
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        # A group stands for the options of its fields, at its own place among the others.
        group = groups.get(parameter.name)
        if group is not None:
            types = get_type_hints(group, include_extras=True)
            options = inspect.signature(group).parameters.values()
            parameters += [option.replace(annotation=types[option.name]) for option in options]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @wraps(function)
    def command(**values: Any) -> None:
        # typer gives a value for each field, of which the function expects the group.
        for name, group in groups.items():
            fields = {field: values.pop(field) for field in inspect.signature(group).parameters}
            values[name] = group(**fields)
        function(**values)

    # By keyword, since options without a default may follow others.
    parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """Read the JSON object of an option, an empty one without a text."""
    value = None
    # No JSON at all is the same mistake as JSON that is no object.
    with suppress(ValueError):
        value = json.loads("{}" if text is None else text)
    if not isinstance(value, dict):
        raise ValueError(f'{option} is {text!r}; expected a JSON object such as {{"name": 1}}')
    return value
