"""Settings of tasks: what can be asked, within which limits, in which words, and which door does not take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

DOORS = ("command", "batch", "many_files", "service", "demo")
"""Where a task is asked, beside its pipeline: `hf-any3d TASK`, `hf-any3d batch`, `hf_any3d.many_files`, the service
and the demo."""


@dataclass(frozen=True)
class Setting:
    """Setting of a task.

    Attributes:
        help: What it is, in the words of help texts and of the service's description.
        argument: Name of the pipeline's argument, where it has another one; None for what a door does with the answer.
        low: Lowest number.
        high: Highest number.
        takes_none: Whether None is a value of its own; else it stands for "not given".
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
    takes_none: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    type: Any = None
    default: Any = None

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
        is_given = declared.takes_none or values[name] != declared.default_at(door)
        if declared.argument is not None and is_given:
            arguments[declared.argument or name] = values[name]
    return arguments
