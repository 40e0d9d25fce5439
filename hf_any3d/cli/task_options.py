"""Options of commands, made from the settings of tasks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field, make_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from hf_any3d.tasks.settings import settings_of

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
            found[name] = str(value) if isinstance(value, Path) else value
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
        bounds = ("min", declared.low), ("max", declared.high)
        limits: dict[str, Any] = {bound: value for bound, value in bounds if value is not None}
        given: Any = declared.kinds[0]
        if declared.words:
            allowed = [*declared.words, *([_NONE] if declared.none else [])]
            choices: Any = StrEnum(declared.name, {word.upper().replace("-", "_"): word for word in allowed})
            given = choices
            default = None if default is None else choices(default)
        elif get_origin(given) is tuple and get_args(given)[0] is str:
            # Separated by commas, which pipelines split.
            given = str
        elif given is Any or get_origin(given) is tuple:
            # Too much for a word: a file.
            given = Path
        if default is None:
            given = given | None
        here = declared.names.get(door, name)
        # By name, a switch that is off has no second word to turn it off; other options get their usual name.
        words = [f"--{here.replace('_', '-')}"] if default is False or name in short else []
        words += [short[name]] if name in short else []
        # A default is told by the help unless there is none.
        shown = default is not None and default is not False
        option = typer.Option(*words, help=declared.help, show_default=shown, **limits)
        fields.append((here, Annotated[given, option], field(default=default)))
    made = make_dataclass(f"{kind.__name__}Options", fields, bases=(base,), frozen=True, kw_only=True)
    made.KIND, made.DOOR = kind, door
    return made


def doubt_in_words(doubt: Doubt) -> str:
    """Return why an answer may be wrong, with the option that may mend it."""
    if doubt.advice is None:
        return doubt.text
    name, value = doubt.advice
    return f"{doubt.text}: try --{name.replace('_', '-')} {value}"
