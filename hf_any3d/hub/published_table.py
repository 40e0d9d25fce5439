"""The checkpoints that authors published on the hub and that open by their names: files, sizes, licenses.

Each is an entry of `published` in the record of its model's folder; `hf_any3d.published` fetches and converts them.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hf_any3d.modeling.records import Published, PublishedFile, System
from hf_any3d.registry import RECORDS, TASKS, task_of_class

SIZE_MARK = ":"
"""Between the name of a repository and a size, as in `OWNER/NAME:base`."""

RECORD = "published"
"""Field of a converted config: where the weights come from, and their license."""

PUBLISHED: dict[str, Published] = {
    name: published for record in RECORDS.values() for name, published in record.published.items()
}
"""Name of the repository, on the hub or on GitHub -> what is published there."""


def address_of(repository: str, published: Published, file: PublishedFile) -> str | None:
    """Return the address of a file that is not on the hub; None for others."""
    if published.address is None:
        return None
    return published.address.format(repository=repository, commit=file.commit, path=file.path)


def download_of(path: os.PathLike) -> str:
    """Return which published name has the authors' file of this name, as the end of a message; "" for others.

    Files that are on the hub have names that many files have, such as `model.pt`.
    """
    name = os.path.basename(path)
    for repository, published in PUBLISHED.items():
        for file in published.files.values():
            if published.address is not None and os.path.basename(file.path) == name:
                return f"; the authors have it at {address_of(repository, published, file)}"
    return ""


def terms_of(system: System) -> dict[str, Any]:
    """Return the part of the record in a converted config that states the licenses."""
    return {
        "weights_license": system.weights_license,
        "code_license": system.code_license,
        "non_commercial": system.non_commercial,
    }


def non_commercial_record(config: Any) -> Mapping[str, Any] | None:
    """Return the record of the published weights in a model, or in a part of it, that may not be used commercially."""
    # A model may hold published weights in one of its parts only.
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    records = (getattr(part, RECORD, None) for part in parts)
    return next((record for record in records if record and record.get("non_commercial")), None)


def is_published(name: object) -> bool:
    """Return whether a name, possibly with a size behind it, is that of a published checkpoint, not of a directory."""
    return isinstance(name, str) and name.partition(SIZE_MARK)[0] in PUBLISHED and not os.path.exists(name)


def find_published(name: str, size: str | None = None) -> tuple[str, str | None, Published]:
    """Return the repository, the size, and what is published, for a repository of `PUBLISHED`, or `name:size`."""
    repository, mark, stated = name.partition(SIZE_MARK)
    found = PUBLISHED[repository]
    if mark and size is not None and size != stated:
        raise ValueError(f"{name}: size={size!r} is given too; expected one size")
    size = stated if mark else size
    # A repository with a single checkpoint has it under None.
    if size not in found.files:
        sizes = [known for known in found.files if known is not None]
        if not sizes:
            raise ValueError(f"{repository}: size={size!r}; the repository has a single checkpoint, leave size out")
        seen = "no size is given" if size is None else f"size={size!r}"
        raise ValueError(
            f"{repository}: {seen}; expected one of {', '.join(sizes)}, as size=… or in the name: "
            f"{repository}{SIZE_MARK}{sizes[0]}"
        )
    return repository, size, found


def published_for(commands: Collection[str]) -> dict[str, list[str | None]]:
    """Return the repositories whose models are for some commands, with their sizes; None for a single one."""
    found: dict[str, list[str | None]] = {}
    for name, size, task in _tasks():
        if TASKS[task].command in commands:
            found.setdefault(name, []).append(size)
    return found


def published_for_task(task: str) -> list[str]:
    """Return the repositories with a model for a task; the first size of several is part of the name."""
    found: dict[str, str] = {}
    for name, size, of_model in _tasks():
        if of_model == task:
            found.setdefault(name, name if size is None else f"{name}{SIZE_MARK}{size}")
    return [*found.values()]


def _tasks() -> Iterator[tuple[str, str | None, str]]:
    """Yield repository, size and task of every published model that has one."""
    for name, published in PUBLISHED.items():
        # Files of one system may be of different classes, such as an encoder and a model with a head.
        for size, file in published.files.items():
            task = task_of_class(file.model_class or published.system.model_class)
            if task is not None:
                yield name, size, task
