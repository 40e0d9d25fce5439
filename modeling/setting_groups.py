"""Groups of settings inside a config: read as attributes, given and stored as one nested dictionary each.

What a method needs are the fields of its config. Settings that most models leave as they are, such as the quirks of
released programs, form a group, so that a saved config shows what is special about a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from hf_any3d.modeling.config_checks import Ranges, check_settings


@dataclasses.dataclass
class SettingGroup:
    """Base class of groups: dataclasses whose fields have defaults."""

    choices: ClassVar[Mapping[str, Collection[Any]]] = {}
    ranges: ClassVar[Ranges] = {}

    def __post_init__(self):
        check_settings(self, self.choices, self.ranges)

    @classmethod
    def of(cls, given: Any, name: str) -> Self:
        """Return the group that a config is given as its field `name`: one, a dictionary, or None for the defaults."""
        if isinstance(given, SettingGroup):
            given = given.to_dict()  # a copy: two configs must not share it
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{name}={given!r}; expected a dictionary of settings")
        settings = dict(given or {})
        allowed = cls.names()
        for key in settings:
            if key not in allowed:
                raise ValueError(f"{name} has {key!r}; expected some of {', '.join(allowed)}")
        return cls(**settings)

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are not the defaults, as JSON holds them."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                value = list(value)
            usual = list(field.default) if isinstance(field.default, tuple) else field.default
            if value != usual:
                changed[field.name] = value
        return changed


class SettingGroupsMixin:
    """For configs with groups: fields whose `default_factory` is a subclass of `SettingGroup`."""

    @classmethod
    def setting_groups(cls) -> dict[str, type[SettingGroup]]:
        """Return the classes of the groups by the names of their fields."""
        config_class: Any = cls  # a dataclass, as all configs are
        kinds: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(config_class)}
        return {name: kind for name, kind in kinds.items() if _is_group(kind)}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; a dictionary for a group becomes one."""
        fields: dict[str, Any] = vars(type(self)).get("__dataclass_fields__", {})
        if name in fields and _is_group(fields[name].default_factory):
            value = fields[name].default_factory.of(value, name)
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs: Any):
        for name, value in kwargs.items():
            check_is_outside_groups(type(self), name, value)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, each group as a dictionary of what is not its default."""
        settings = super().to_dict()
        return settings | {name: getattr(self, name).to_dict() for name in self.setting_groups()}


def check_is_outside_groups(config_class: type, name: str, value: Any) -> None:
    """Refuse a setting of a group that is given beside it; transformers would accept it, without an effect."""
    if not issubclass(config_class, SettingGroupsMixin):
        return
    for group, kind in config_class.setting_groups().items():
        own = name.removeprefix(f"{group}_")
        if own in kind.names():
            raise ValueError(f"{name}={value!r} is a setting of {group}; expected {group}={{{own!r}: {value!r}}}")


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SettingGroup)
