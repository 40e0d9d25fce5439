"""Settings of tasks: what can be asked, within which limits, in which words, and which door does not take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DOORS = ("command", "runs", "many_files", "service", "demo")
"""Where a task is asked, beside its pipeline: `hf-any3d TASK`, its runs over many files, `hf_any3d.many_files`, the
service and the demo."""

ESTIMATE_NORMALS = "Estimate missing normals, for models that use them."
UP_AXIS = "Up axis of the point clouds; by default that of the model's training data."
UP_OF_OBJECT = "Direction that is up in the files, such as z or -y; by default as they state it, else as objects look."
UpDirection = Literal["x", "y", "z", "-x", "-y", "-z"]
"""Help and type of settings that several tasks have."""


@dataclass(frozen=True)
class Setting:
    """Setting of a task.

    Attributes:
        help: What it is, in the words of help texts and of the service's description.
        argument: Name of the pipeline's argument, where it has another one; None for what a door does with the answer.
        low: Lowest number.
        high: Highest number.
        none: What None stands for where it is a value of its own; else it stands for "not given".
        is_named: Whether calls, and what is stored of runs, name it always; else only where it is given.
        defaults: Door -> default that only this door has.
        refused: Door -> why it does not take the setting.
        names: Door -> name of the setting there, where it has another one.
        name: Name of the setting.
        type: Type of its values.
        default: Default of all other doors.
    """

    help: str
    argument: str | None = ""
    low: float | None = None
    high: float | None = None
    none: str = ""
    is_named: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    type: Any = None
    default: Any = None

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Types of the values, without that of None."""
        kinds = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        return tuple(kind for kind in kinds if kind is not type(None))

    @property
    def words(self) -> tuple[str, ...]:
        """Words to choose from; none where any value may be given."""
        return tuple(word for kind in self.kinds if get_origin(kind) is Literal for word in get_args(kind))

    @property
    def is_number(self) -> bool:
        """True if values are numbers."""
        return any(kind in (int, float) for kind in self.kinds)

    def check(self, value: Any) -> None:
        """Raise a ValueError for a value out of range; types are those that the caller gives."""
        if isinstance(value, str) and self.words and value not in self.words:
            raise ValueError(f"{self.name} is {value!r}; expected one of {', '.join(self.words)}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if self.low is not None and not value >= self.low:
                raise ValueError(f"{self.name} is {value!r}; expected at least {self.low:g}")
            if self.high is not None and not value <= self.high:
                raise ValueError(f"{self.name} is {value!r}; expected at most {self.high:g}")

    def default_at(self, door: str) -> Any:
        """Return the default at a door."""
        return self.defaults.get(door, self.default)


def setting(default: Any, help: str, **further: Any) -> Any:
    """Declare a field of a task's settings; `further` are attributes of `Setting`."""
    strange = {*further.get("refused", ()), *further.get("defaults", ())} - {*DOORS}
    if strange:
        raise ValueError(f"there is no door {sorted(strange)[0]!r}; expected some of {', '.join(DOORS)}")
    return field(default=default, metadata={"setting": Setting(help, **further)})


def settings_of(kind: type, door: str | None = None) -> dict[str, Setting]:
    """Return the settings of a task by their names; those that a door takes, if one is given."""
    types = get_type_hints(kind)
    found = {}
    for own in dataclasses.fields(kind):
        declared: Setting = own.metadata["setting"]
        if door is None or door not in declared.refused:
            found[own.name] = dataclasses.replace(declared, name=own.name, type=types[own.name], default=own.default)
    return found


def pipeline_arguments(kind: type, values: Mapping[str, Any], door: str) -> dict[str, Any]:
    """Return the settings of a task that are given at a door as arguments of its pipeline.

    Those at their default are left out, as not every model of a task has each; but where None is a value, the
    pipeline's own default may be another.
    """
    arguments = {}
    for name, declared in settings_of(kind, door).items():
        # Runs do not name settings at their default.
        value = values.get(name, declared.default_at(door))
        is_given = declared.is_named or value != declared.default_at(door)
        if declared.argument is not None and is_given:
            arguments[declared.argument or name] = value
    return arguments
