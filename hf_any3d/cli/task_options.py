"""Options of commands, made from the settings of tasks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field, make_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from hf_any3d.tasks.settings import Setting, settings_of

if TYPE_CHECKING:
    from hf_any3d.tasks.answers import Doubt

_NONE = "none"  # as a word of the command line


class Settings:
    """Base of the options of a task: a group for `with_groups`, with an option for each setting."""

    KIND: type
    DOOR: str

    def values(self) -> dict[str, Any]:
        """Return the settings by their names; words become values."""
        found = {}
        for name, declared in settings_of(self.KIND, self.DOOR).items():
            here = declared.names.get(self.DOOR, name)
            # A group may have some of the settings alone.
            if not hasattr(self, here):
                continue
            value = getattr(self, here)
            if isinstance(value, StrEnum):
                value = None if declared.none and value == _NONE else value.value
            elif isinstance(value, Path):
                value = str(value)
            found[name] = value
        return found


def options_of(
    kind: type, door: str = "command", base: type = Settings, only: Collection[str] = (), **short: str
) -> Any:
    """Make a dataclass with an option for each setting of a task that a door takes.

    `base` may have further options, `only` names the settings where not all are meant, and `short` has short names,
    such as "-l", by those of the settings.
    """
    fields = []
    for name, declared in settings_of(kind, door).items():
        if only and name not in only:
            continue
        default = declared.default_at(door)
        limits: dict[str, Any] = {}
        if declared.low is not None:
            limits["min"] = declared.low
        if declared.high is not None:
            limits["max"] = declared.high
        given = _type_of_option(declared)
        if declared.words and default is not None:
            default = given(default)
        if default is None:
            given = given | None
        here = declared.names.get(door, name)
        words = []
        # By name, a switch that is off has no second word to turn it off; other options get their usual name.
        if default is False or name in short:
            words.append(f"--{here.replace('_', '-')}")
        if name in short:
            words.append(short[name])
        # A default is told by the help unless there is none; that of a switch by its words, not by its name.
        shown = f"--{here.replace('_', '-')}" if default is True else default is not None and default is not False
        option = typer.Option(*words, help=declared.help, show_default=shown, **limits)
        fields.append((here, Annotated[given, option], field(default=default)))
    made = make_dataclass(f"{kind.__name__}Options", fields, bases=(base,), frozen=True, kw_only=True)
    made.KIND, made.DOOR = kind, door
    return made


def _type_of_option(declared: Setting) -> Any:
    """Return the type that typer reads an option as."""
    if declared.words:
        allowed = list(declared.words)
        if declared.none:
            allowed.append(_NONE)
        return StrEnum(declared.name, {word.upper().replace("-", "_"): word for word in allowed})
    kind = declared.kinds[0]
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        # Separated by commas, which pipelines split.
        return str
    if kind is Any or get_origin(kind) is tuple:
        # Too much for a word: a file.
        return Path
    return kind


def doubt_in_words(doubt: Doubt) -> str:
    """Return why an answer may be wrong, with the option that may mend it."""
    if doubt.advice is None:
        return doubt.text
    name, value = doubt.advice
    return f"{doubt.text}: try --{name.replace('_', '-')} {value}"
