"""The record of a pretrained part in a config."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

# Whether all parts are stored, wherever they came from
_INCLUDES: ContextVar[bool] = ContextVar("includes_parts", default=False)
# Keys of configs in others and of adapters that hold names of models
_PLACES = ("_name_or_path", "base_model_name_or_path")


@dataclasses.dataclass(frozen=True)
class PretrainedPart:
    """Source and checksum of a pretrained part's weights.

    Args:
        name_or_path: Repository or absolute directory that the weights came from; None if unknown. Files hold
            repositories alone: what came from a directory is stored with the model.
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

    @property
    def is_to_store(self) -> bool:
        """True if the weights must be saved too: their source is a local directory, or they were requested."""
        return self.is_elsewhere and (_INCLUDES.get() or is_directory(str(self.name_or_path)))


def absolute_name(name_or_path: str | os.PathLike) -> str:
    """Return the absolute path of a directory, valid from any working directory; a repository's name unchanged."""
    name = os.fspath(name_or_path)
    return os.path.abspath(name) if os.path.isdir(name) else name


@contextmanager
def including_parts(include: bool) -> Iterator[None]:
    """Store all pretrained parts in whatever is saved, if `include` or that of an outer call is true."""
    token = _INCLUDES.set(include or _INCLUDES.get())
    try:
        yield
    finally:
        _INCLUDES.reset(token)


def tell_stored(model: object, name: str, source: str | None) -> None:
    """Warn that a part of a model is stored because only this machine has its source: once, not at each checkpoint."""
    told: set[str] = vars(model).setdefault("_told_stored", set())
    if name in told:
        return
    told.add(name)
    warnings.warn(
        f"the {name.replace('_', ' ')} came from the directory {source}, which nobody else can open, so its weights "
        "are stored with the model; of one that was opened by its name on the Hub, the name is stored",
        stacklevel=4,
    )


def is_directory(name: str) -> bool:
    """Return whether a name is that of a directory, here or elsewhere, and not that of a repository."""
    return os.path.isabs(name) or name.startswith(".") or os.path.isdir(name)


def leave_out_directories(file: Path) -> None:
    """Remove local directories from a JSON file of settings: they exist on one machine and reveal its user."""
    if not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = _without_directories(settings)
    if kept != settings:
        file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_directories(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_without_directories(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    kept = {key: _without_directories(value) for key, value in settings.items()}
    for part in (kept.get("parts") or {}).values():
        if isinstance(part, dict) and is_directory(part.get("name_or_path") or ""):
            del part["name_or_path"]
    for key in _PLACES:
        # What an adapter's own directory holds moves with it.
        if isinstance(kept.get(key), str) and is_directory(kept[key]) and not kept[key].startswith("./"):
            kept[key] = None
    return kept


def located(name: str | None, folder: str | os.PathLike) -> str | None:
    """Return the absolute path of a directory inside a folder that files in it name; other names as they are."""
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

    def to_json_file(self, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the JSON file of `save_pretrained`, without the directories of this machine."""
        super().to_json_file(json_file_path, *args, **kwargs)
        leave_out_directories(Path(json_file_path))

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
