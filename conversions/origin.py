"""Origin of a checkpoint: whether its authors published it, and what its owner states.

A file in the layout of a released program may be anybody's. License, training data and class names of the authors are
said of their own files alone: those that were fetched by their published names, and those whose checksum is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_any3d.hub.published_table import PUBLISHED, RECORD, terms_of
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.modeling.records import System
from hf_any3d.utils.markdown import inline

UNKNOWN = "unknown"
"""License of weights whose owner has not stated one; the hub knows this word."""
_CHECKSUMS: set[str] = set()
for _entry in PUBLISHED.values():
    _CHECKSUMS.update(file.sha256 for file in _entry.files.values() if file.sha256)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Facts about the files of a conversion beside their tensors.

    Attributes:
        is_published: Whether they were fetched by the name that their authors published them under.
        license: License that their owner states.
        classes: Names of the classes that their owner states, in the order of the logits.
        recognized: Arguments of the conversion that were found from the files, which nobody has stated.
    """

    is_published: bool = False
    license: str | None = None
    classes: tuple[str, ...] | None = None
    recognized: frozenset[str] = frozenset()


_ORIGIN = ContextVar("origin", default=Origin())  # noqa: B039  frozen


@contextmanager
def known_origin(**known: Any) -> Iterator[None]:
    """Let conversions know the fields of an `Origin`."""
    token = _ORIGIN.set(dataclasses.replace(_ORIGIN.get(), **known))
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def is_stated(argument: str, value: Any) -> bool:
    """Return whether the owner of the files has given an argument of the conversion."""
    return value is not None and argument not in _ORIGIN.get().recognized


def stated_classes() -> tuple[str, ...] | None:
    """Return the names of classes that the owner of the files states; None if they state none."""
    return _ORIGIN.get().classes


def are_published(files: Iterable[Path]) -> bool:
    """Return whether files are those that their authors published."""
    if _ORIGIN.get().is_published:
        return True
    return any(file.is_file() and file_digest(file) in _CHECKSUMS for file in files)


def name_labels(
    config: PreTrainedConfig, names: Sequence[str], files: Iterable[Path], *, is_stated: bool = False
) -> bool:
    """Give a config the class names that the owner of its files states, or else those of a data set.

    Args:
        config: Config with the number of classes.
        names: Class names of the data set that the authors trained on.
        files: The files that are converted.
        is_stated: Whether the owner says that the model is of this data set.

    Returns:
        Whether its classes are those of the data set.

    Raises:
        ValueError: The owner states more or fewer names than there are classes, or a data set with others.
    """
    classes = _ORIGIN.get().classes
    if classes is not None and len(classes) != config.num_labels:
        raise ValueError(f"{len(classes)} names of classes are given; the model has {config.num_labels} classes")
    if is_stated and classes is None and names and len(names) != config.num_labels:
        raise ValueError(f"the given dataset has {len(names)} classes; the model has {config.num_labels}")
    # Other numbers of classes are of other data in any case.
    is_theirs = classes is None and len(names) == config.num_labels and (is_stated or are_published(files))
    if is_theirs:
        classes = names
    if classes is None:
        classes = [f"LABEL_{number}" for number in range(config.num_labels)]
    # A config without names has these.
    if tuple(config.id2label.values()) != tuple(classes):
        config.id2label = dict(enumerate(classes))
        config.label2id = {label: number for number, label in config.id2label.items()}
    return is_theirs


def record_terms(config: PreTrainedConfig, system: System, files: Iterable[Path]) -> None:
    """Keep the terms of published weights in their config, so that later users of the directory see them, too."""
    if are_published(files):
        setattr(config, RECORD, terms_of(system))


def license_of(files: Iterable[Path], license: str | None) -> str | None:
    """Return the license for the metadata of a card; `license` is that of the authors, None where it is not known."""
    if _ORIGIN.get().license is not None:
        return _ORIGIN.get().license
    return license if are_published(files) else UNKNOWN


def license_section(files: Iterable[Path], text: str) -> str:
    """Return the text of a card on the license; `text` is what is known of that of the authors, "" if nothing is."""
    stated = _ORIGIN.get().license
    if stated is not None:
        return f"{inline(stated)}, as stated by the person who converted these weights."
    if are_published(files):
        return text
    unknown = "Unknown: fill it in here and as `license` in the metadata of this card."
    if not text:
        return unknown
    return f"{unknown} If these are the weights that the authors published: {text}"
