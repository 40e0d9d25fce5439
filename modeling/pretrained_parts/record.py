"""The record of a pretrained part in a config."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

# Whether what is saved is on its way to the hub, where no directory of this machine is.
_PUSHES: ContextVar[bool] = ContextVar("pushes", default=False)
# Temporary folder -> the folder that it becomes when all is saved
_SAVED_FOR: dict[str, str] = {}
# Keys that hold places, of configs in others, adapters and the state of a Trainer
_PLACES = {"_name_or_path", "base_model_name_or_path", "best_model_checkpoint"}


@dataclasses.dataclass(frozen=True)
class PretrainedPart:
    """Source and checksum of a pretrained part's weights.

    Args:
        name_or_path: Repository or absolute directory that the weights came from; None if unknown. Files hold a
            directory relative to their own, see `place_from`.
        revision: The commit of that repository.
        checksum: `tensors-sha256:…`, see `tensors_checksum`: of all tensors of the checkpoint, or of the part alone if
            the checkpoint may hold more than the part (ACT) or is stored with an adapter.
        subfolder: Folder of an adapter's repository that holds the weights, if they are stored with the adapter.
        stored: Whether the weights are stored with the model, because they are not those at `name_or_path`.
        control: What a control of a study made of the weights, "random" or "shuffled"; None for all other models.
    """

    name_or_path: str | None = None
    revision: str | None = None
    checksum: str | None = None
    subfolder: str | None = None
    stored: bool = False
    control: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record without its empty fields, for a config."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, False)}

    @property
    def is_elsewhere(self) -> bool:
        """True if the weights have to be fetched from `name_or_path`."""
        return self.name_or_path is not None and not self.stored


def absolute_name(name_or_path: str | os.PathLike) -> str:
    """Return the absolute path of a directory, valid from any working directory; a repository's name unchanged."""
    name = os.fspath(name_or_path)
    return os.path.abspath(name) if os.path.isdir(name) else name


@contextlib.contextmanager
def pushing() -> Iterator[None]:
    """Save what is about to be pushed: files name no directory of this machine as a place to find weights."""
    token = _PUSHES.set(True)
    try:
        yield
    finally:
        _PUSHES.reset(token)


def is_directory(name: str) -> bool:
    """Return whether a name is that of a directory, here or elsewhere, and not that of a repository."""
    return os.path.isabs(name) or name.startswith(".") or os.path.isdir(name)


def can_name(name: str, folder: str | os.PathLike) -> bool:
    """Return whether files in a folder may name a place: a repository, or a directory that is near.

    Absolute paths hold for one machine and tell strangers who uses it, as do relative ones through a user's home.
    """
    if not is_directory(name):
        return True
    if _PUSHES.get() or not os.path.isdir(name):
        return False
    users = {Path.home().name}
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        users.add(getpass.getuser())
    try:
        parts = Path(_relative(name, folder)).parts
    except ValueError:  # another drive
        return False
    homes = [part for part in parts[:-1] if part in ("home", "Users")]
    return not homes and users.isdisjoint(parts)


def place_from(name: str, folder: str | os.PathLike) -> str:
    """Return what files in a folder call a place: a repository's name, or a directory relative to the folder.

    Of a directory that must not be named, only the last part is left, which says what to look for.
    """
    if not is_directory(name):
        return name
    folder = _become(folder)
    if not can_name(name, folder):
        return f"./{os.path.basename(os.path.normpath(name))}"
    relative = Path(_relative(name, folder)).as_posix()
    # Never like the name of a repository
    return relative if relative.startswith(".") else f"./{relative}"


@contextlib.contextmanager
def saved_for(temporary: str | os.PathLike, folder: str | os.PathLike) -> Iterator[None]:
    """Let what is saved in a temporary folder name directories as seen from the folder that it will become."""
    key = os.path.realpath(temporary)
    _SAVED_FOR[key] = os.path.realpath(folder)
    try:
        yield
    finally:
        del _SAVED_FOR[key]


def _become(folder: str | os.PathLike) -> str | os.PathLike:
    # The folder itself, unless it is about to become another one.
    path = Path(os.path.realpath(folder))
    for temporary, becomes in _SAVED_FOR.items():
        if path.is_relative_to(temporary):
            return Path(becomes, path.relative_to(temporary))
    return folder


def _relative(name: str, folder: str | os.PathLike) -> str:
    return os.path.relpath(os.path.realpath(name), os.path.realpath(folder))


def state_places(file: Path) -> None:
    """Replace the directories of weights that a JSON file names by what files beside it call them."""
    if not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    stated = json.dumps(_with_places(settings, file.parent), indent=2, sort_keys=True) + "\n"
    if json.loads(stated) != settings:
        file.write_text(stated, encoding="utf-8")


def _with_places(settings: Any, folder: Path) -> Any:
    if isinstance(settings, list):
        return [_with_places(value, folder) for value in settings]
    if not isinstance(settings, dict):
        return settings
    named = {key: _with_places(value, folder) for key, value in settings.items()}
    for part in (named.get("parts") or {}).values():
        if isinstance(part, dict) and part.get("name_or_path"):
            part["name_or_path"] = place_from(part["name_or_path"], folder)
    for key in _PLACES & named.keys():
        if isinstance(named[key], str) and named[key]:
            named[key] = place_from(named[key], folder)
    return named


def located(name: str | None, folder: str | os.PathLike) -> str | None:
    """Return the absolute path of a directory that files in a folder name; other names as they are."""
    if name is None or not name.startswith(".") or not os.path.isdir(Path(folder, name)):
        return name
    return os.path.abspath(Path(folder, name))


def check_revisions(revisions: Mapping[str, str | None] | None, named: Collection[str]) -> None:
    """Refuse revisions of parts that are not given by name, which would have no effect."""
    unused = [name for name, value in (revisions or {}).items() if value is not None and name not in named]
    if unused:
        expected = f"some of {', '.join(map(repr, named))}" if named else "none"
        raise ValueError(f"revisions has {unused[0]!r}; expected {expected}, the parts that are given by name")


class PartsConfigMixin:
    """For configs with a field `parts`: one `PretrainedPart`, as a dictionary, for each pretrained part."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; directories of parts are found from that of the config."""
        opened = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = opened[0] if isinstance(opened, tuple) else opened
        config.locate_parts(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return opened

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the contents of a stored file, in the place that auto classes name."""
        place = kwargs.get("name_or_path")
        opened = super().from_dict(config_dict, **kwargs)
        if place is not None:
            (opened[0] if isinstance(opened, tuple) else opened).locate_parts(place)
        return opened

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        """Build from a file that `to_json_file` has written."""
        config = super().from_json_file(json_file)
        config.locate_parts(Path(json_file).parent)
        return config

    def to_json_file(self, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the JSON file of `save_pretrained`, with directories of parts relative to it."""
        super().to_json_file(json_file_path, *args, **kwargs)
        state_places(Path(json_file_path))

    def locate_parts(self, folder: str | os.PathLike) -> None:
        """Make the directories of parts that a file in a folder names absolute, as the folder will not be known."""
        for name in self.parts or ():
            place = self.part(name).name_or_path
            if place != located(place, folder):
                self.change_part(name, name_or_path=located(place, folder))
        for inner in vars(self).values():
            if isinstance(inner, PreTrainedConfig) and inner.name_or_path:
                inner.name_or_path = located(inner.name_or_path, folder)
            if isinstance(inner, PartsConfigMixin):
                inner.locate_parts(folder)

    def part(self, name: str) -> PretrainedPart:
        """Return the record of a part; an empty one if the part is stored with the model and has no source."""
        # A config holds dictionaries, as JSON has no other form for them.
        return PretrainedPart(**(self.parts or {}).get(name, {}))

    def set_part(self, name: str, part: PretrainedPart | None) -> None:
        """Record a part; None or an empty record removes it."""
        parts = {other: recorded for other, recorded in (self.parts or {}).items() if other != name}
        if part is not None and (recorded := part.to_dict()):
            parts[name] = recorded
        # None rather than an empty dictionary, so that a model without parts has no field in its file.
        self.parts = parts or None

    def change_part(self, name: str, **changes: Any) -> None:
        """Change some fields of a part's record."""
        self.set_part(name, dataclasses.replace(self.part(name), **changes))

    def check_parts(self, allowed: tuple[str, ...]) -> None:
        """Refuse records of parts that the model does not have."""
        unknown = sorted(set(self.parts or ()) - set(allowed))
        if unknown:
            expected = f"some of {', '.join(map(repr, allowed))}" if allowed else "none"
            raise ValueError(f"parts has {unknown[0]!r}; expected {expected}")


def part_property(part: str, field: str, doc: str) -> property:
    """Make a config property for one field of a part's record."""

    def get(config: PartsConfigMixin) -> Any:
        return getattr(config.part(part), field)

    def set_(config: PartsConfigMixin, value: Any) -> None:
        config.change_part(part, **{field: value})

    return property(get, set_, doc=doc)


def source_property(part: str, doc: str) -> property:
    """Make a config property for the source of a part's weights, None if they are stored with the model."""

    def get(config: PartsConfigMixin) -> str | None:
        return config.part(part).name_or_path if config.part(part).is_elsewhere else None

    def set_(config: PartsConfigMixin, value: str | os.PathLike | None) -> None:
        if value is not None:
            # A new source replaces stored weights.
            config.change_part(part, name_or_path=os.fspath(value), stored=False)
        # Weights stored with the model keep the name that they were trained from.
        elif not config.part(part).stored:
            config.change_part(part, name_or_path=None)

    return property(get, set_, doc=doc)


class EncoderConfigMixin(PartsConfigMixin):
    """For configs of models around a frozen encoder, the part "encoder"."""

    encoder_name_or_path = source_property("encoder", "Source of the encoder's weights; None if stored.")
    encoder_revision = part_property("encoder", "revision", "Pinned commit of the encoder's repository.")
    encoder_checksum = part_property("encoder", "checksum", "Checksum of the encoder's weights.")

    @property
    def encoder_weights(self) -> str:
        """The weights of the encoder: "pretrained", or as a control of a study "random" or "shuffled"."""
        return self.part("encoder").control or "pretrained"

    @property
    def encoder_trained_from(self) -> str | None:
        """Original source of an encoder that was changed and is stored with the model."""
        part = self.part("encoder")
        return part.name_or_path if part.stored else None

    @encoder_trained_from.setter
    def encoder_trained_from(self, value: str | None) -> None:
        """Mark the encoder as changed and stored with the model, with its original source."""
        if value is not None:
            self.change_part("encoder", name_or_path=os.fspath(value), stored=True)
