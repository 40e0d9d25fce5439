"""Open checkpoints that authors published: fetch the file, convert it once, and load the converted model.

Converted models are kept in a cache:

    <owner>--<name>/revisions/<revision>/<size>.json    commit, and checksum of the file there
    <owner>--<name>/<checksum>/                         the converted model
    <owner>--<name>/files/<checksum>/                   the authors' file, if it is not on the hub
    local/<checksum>/                                   the same, of files given by their paths
    <owner>--<name>/license.json                        that the license was shown and, if necessary, accepted

so that a file is converted once, whatever revision it comes from, and models open without a network afterwards. A
converted model with files that are not as they were written is converted again.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] of the hub's client
from huggingface_hub.utils import WeakFileLock
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from hf_any3d.conversions.origin import are_published, known_origin
from hf_any3d.conversions.programs import recognize
from hf_any3d.hub.downloads import (
    borrowed_part,
    download,
    download_from,
    fetch_part,
    find_version,
    kept_file,
)
from hf_any3d.hub.licenses import check_license, license_text, show_license
from hf_any3d.hub.names import similar_path
from hf_any3d.hub.published_table import (
    PUBLISHED,
    RECORD,
    SIZE_MARK,
    address_of,
    download_of,
    find_published,
    terms_of,
)
from hf_any3d.model_card.saving import FILE as CARD, sign_card
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.modeling.records import Published, System
from hf_any3d.utils.atomic_files import atomic_write, folder_beside, read_json_object, write_json, write_text

logger = logging.getLogger(__name__)

# Of the converted directories; a change of what conversions write makes another folder.
_LAYOUT = "v2"
CHECKSUMS = "checksums.json"
"""File of a converted model with the SHA-256 of each other file that it is opened from."""
# Name and revision -> directory: a load asks for a dozen files of the same one.
_OPENED: dict[tuple[str, str | None], Path] = {}


def published_names() -> list[str]:
    """Return the names of all published checkpoints, each with its size where there are several."""
    return [
        repository if size is None else f"{repository}{SIZE_MARK}{size}"
        for repository, published in PUBLISHED.items()
        for size in published.files
    ]


def open_published(
    name: str | os.PathLike,
    *,
    size: str | None = None,
    revision: str | None = None,
    accept_license: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Open a checkpoint of a published point encoder or chat model in the form in which its authors published it.

    The authors' file is fetched and converted at the first call, and opened from the cache afterwards, which needs no
    network. Nothing in it is executed, and every tensor is accounted for.

    Args:
        name: Repository on the hub, such as "OpenShape/openshape-pointbert-vitb32-rgb", or path of the authors' file.
        size: Which of several checkpoints of a repository, such as "base".
        revision: Branch, tag or commit of the repository.
        accept_license: Accept a license that forbids commercial use. This is remembered; the environment variable
            `HF_ANY3D_ACCEPT_LICENSE` with names of repositories, or `all`, does the same without being remembered.
        cache_dir: Where to keep converted models and, in `hub` below it, downloads; by default the folder `hf_any3d`
            in `HF_HOME` and the hub's cache.
        **kwargs: Arguments of `from_pretrained`, such as `dtype`, `device_map`, `attn_implementation` or `token`.

    Returns:
        The model in eval mode, of the class that the table of published checkpoints names, or for a path, of the class
        that its conversion gives.

    Raises:
        ValueError: The name is not in the table, the size is missing or wrong, the license is not accepted, or the
            file is damaged or does not fit.
        FileNotFoundError: There is no such file.
        OSError: There is no such repository or revision, or the hub cannot be reached and the cache does not have it.
    """
    # Needed for the download, and left in the arguments for `from_pretrained`, too.
    hub = {key: kwargs[key] for key in ("token", "local_files_only") if key in kwargs}
    converted = _find(name, size, revision, accept_license, cache_dir, hub)
    # The config knows which of the classes was converted; callers do not have to.
    (saved_class,) = json.loads((converted.directory / CONFIG_NAME).read_text(encoding="utf-8"))["architectures"]
    model_class = getattr(importlib.import_module("hf_any3d"), saved_class)
    # A file is no name that other machines could find; its model is opened by the directory.
    if converted.name is None:
        return model_class.from_pretrained(converted.directory, **kwargs)
    # By its name, since adapters and reports must name what other machines find too.
    _OPENED[converted.name, converted.revision] = converted.directory
    return model_class.from_pretrained(converted.name, revision=converted.revision, **kwargs)


def keep_download(name: str, directory: Path) -> None:
    """Look in a directory for a published file that is not on the hub, by its checksum, and keep it as if fetched."""
    repository, size, published = find_published(name)
    file = published.files[size]
    for path in directory.iterdir():
        if path.is_file() and file_digest(path) == file.sha256:
            # Where a download is looked for before it is fetched.
            kept = kept_file(file, _cache(None) / repository.replace("/", "--"))
            with atomic_write(kept) as unfinished:
                shutil.copyfile(path, unfinished)


def published_directory(
    name: str | os.PathLike,
    *,
    size: str | None = None,
    revision: str | None = None,
    accept_license: bool = False,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the directory of the converted model, for `from_pretrained`; arguments and errors of `open_published`."""
    return _find(name, size, revision, accept_license, cache_dir, {"token": token}).directory


def opened_directory(name: str, revision: str | None = None, **hub: Any) -> Path:
    """Return the directory of a published name, which is looked up on the hub once per process."""
    revision = getattr(revision, "resolved", revision)  # transformers looks commits up at the start of a load
    key = (name, revision)
    # The cache may have been cleared meanwhile.
    if key not in _OPENED or not _OPENED[key].is_dir():
        _OPENED[key] = _from_hub(name, None, revision, False, None, hub).directory
    return _OPENED[key]


@dataclass(frozen=True)
class _Converted:
    """A converted checkpoint."""

    directory: Path
    name: str | None = None
    revision: str | None = None


def _find(
    name: str | os.PathLike,
    size: str | None,
    revision: str | None,
    accept_license: bool,
    cache_dir: str | os.PathLike | None,
    hub: Mapping[str, Any],
) -> _Converted:
    path = Path(name)
    text = os.fspath(name)
    if path.is_file():
        if (revision, size) != (None, None):
            raise ValueError(f"{text}: revision={revision!r} or size={size!r} is given for a file; expected None")
        # Convert a file in the layout of the authors, unless the cache has it converted.
        system, settings = _system_of(path)
        folder = _cache(cache_dir) / "local"
        with _exclusively(folder):
            # Their terms are those of their own files; a file with their layout may be anybody's.
            if are_published([path]):
                check_license(system.title, system, folder / system.title, accept_license)
            directory = folder / f"{file_digest(path)}-{_LAYOUT}"
            if not _is_whole(directory):
                _convert(path, directory, system, None, None, {"file": path.name}, settings)
            if are_published([path]):
                show_license(system.title, system, folder / system.title)
        return _Converted(directory)
    # A folder of this name is not published, and is opened as any other folder.
    if text.partition(SIZE_MARK)[0] in PUBLISHED and not path.is_dir():
        return _from_hub(text, size, revision, accept_license, cache_dir, hub)
    is_path = "/" not in text or path.suffix in (".pt", ".pth", ".bin", ".t7") or text.startswith((".", "~", "/"))
    if is_path and not path.is_dir():
        raise FileNotFoundError(f"no file {text}{similar_path(path)}{download_of(path)}")
    raise ValueError(f"{text}: not a published checkpoint; expected one of {', '.join(PUBLISHED)}, or a file")


def _system_of(path: Path) -> tuple[System, Mapping[str, Any]]:
    """Return the published system that a file belongs to, whose conversion needs no other file, and its settings."""
    recognized = recognize(path)
    program = recognized.program
    systems = [entry.system for entry in PUBLISHED.values() if entry.system.convert == program.convert]
    if systems:
        # Of systems with the same conversion, the one of this title; otherwise the first in the table.
        system = min(systems, key=lambda system: system.title != program.title)
        files = [file for entry in PUBLISHED.values() if entry.system is system for file in entry.files.values()]
        # A file with parts does not make a model alone, and a path names no second one.
        if not all(file.parts for file in files):
            return system, recognized.settings
    raise ValueError(
        f"{path}: a file of {program.title}, which opens by a published name, or after a conversion: hf-any3d convert "
        f"{path} … --output DIR"
    )


# Files on the hub.


def _from_hub(
    name: str,
    size: str | None,
    revision: str | None,
    accept_license: bool,
    cache_dir: str | os.PathLike | None,
    hub: Mapping[str, Any],
) -> _Converted:
    repository, size, published = find_published(name, size)
    file, system = published.files[size], published.system
    folder = _cache(cache_dir) / repository.replace("/", "--")
    with _exclusively(folder):
        check_license(repository, system, folder, accept_license)
        address = address_of(repository, published, file)
        version = find_version(repository, size, file, revision, folder, hub, address)
        # A head or another part may change while the file does not.
        of_parts = f"-{version.commit[:12]}" if file.parts else ""
        directory = folder / f"{version.checksum}{of_parts}-{_LAYOUT}{_title(size)}"
        if not _is_whole(directory):
            # None is the hub's own cache.
            hub_cache = None if cache_dir is None else Path(cache_dir) / "hub"
            record = {"name": repository, "file": file.path, "revision": version.commit}
            # Borrowed parts are cut out of other files, and exist only until the model is converted.
            with ExitStack() as stack:
                try:
                    if address is not None:
                        original = download_from(address, repository, file, version.checksum, folder, hub)
                    else:
                        original = download(repository, file.path, version, hub_cache, hub)
                    parts = {}
                    for argument, part in file.parts.items():
                        parts[argument] = fetch_part(repository, part, version.commit, hub_cache, hub)
                    for argument, part in file.borrowed.items():
                        parts[argument] = stack.enter_context(borrowed_part(part, folder, hub_cache, hub))
                except HTTPError as error:
                    problem = f"the download failed ({type(error).__name__}: {error}); call again to continue it"
                    raise OSError(f"{repository}: {problem}") from error
                _convert(original, directory, system, size, published, record, {**parts, **file.options})
        show_license(repository, system, folder)
    public = repository if size is None else f"{repository}{SIZE_MARK}{size}"
    return _Converted(directory, public, version.commit)


# Conversion.


def _convert(
    original: Path,
    directory: Path,
    system: System,
    size: str | None,
    published: Published | None,
    record: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> None:
    """Convert a file to a directory, which appears complete or not at all."""
    title = Path(record.get("name", original.stem)).name + _title(size)  # of the card
    with folder_beside(directory) as unfinished:
        convert = getattr(importlib.import_module("hf_any3d.conversions"), system.convert)
        with known_origin(is_published=published is not None):
            convert(**{"checkpoint": original, "output": unfinished / title, **arguments})
            is_theirs = are_published([original])
        if published is not None:
            config = json.loads((unfinished / title / CONFIG_NAME).read_text(encoding="utf-8"))
            expected = published.files[size].config
            # The tensors of a file tell its size; another file under this name would be another model.
            others = [name for name, value in expected.items() if config.get(name) != value]
            if others:
                seen = ", ".join(f"{name}={config.get(name)!r}" for name in others)
                stated = ", ".join(f"{name}={expected[name]!r}" for name in others)
                raise ValueError(f"{original}: its tensors give {seen}; size {size or 'model'!r} has {stated}")
        # Before the checksums, one of which is that of the config.
        source = {**record, "sha256": file_digest(original)}
        reported = published.files[size].reported if published is not None else ""
        _record(unfinished / title, source, system if is_theirs else None, reported)
        write_json(unfinished / title / CHECKSUMS, _checksums(unfinished / title))
        shutil.rmtree(directory, ignore_errors=True)  # a damaged one
        os.replace(unfinished / title, directory)


def _record(directory: Path, source: Mapping[str, Any], system: System | None, reported: str) -> None:
    """Add the source to the config of a converted model, and license and figures of a published one to its card."""
    config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    # In the config, since models that are trained from these weights keep their terms.
    config[RECORD] = {**source, **(terms_of(system) if system is not None else {})}
    write_json(directory / CONFIG_NAME, config)
    if system is None:
        return
    card = ModelCard.load(directory / CARD)
    if re.fullmatch(r"[A-Z][\w.-]*", system.weights_license):  # an identifier of SPDX
        card.data["license"] = system.weights_license.lower()
    # Text is added above the signature, which is then made anew for the complete card.
    text = str(card).partition("\n<!-- Written by hf_any3d")[0]
    figures = f"\n\n## Reported of these weights\n\n{reported}; not evaluated here." if reported else ""
    write_text(directory / CARD, sign_card(f"{text}{figures}\n\n## Terms\n\n{license_text(system)}"))


# The cache.


def _checksums(directory: Path) -> dict[str, str]:
    # The card may be edited, and no model is opened from it.
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in (CARD, CHECKSUMS))
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in files}


def _is_whole(directory: Path) -> bool:
    """Return whether there is a converted model whose files are as they were written."""
    if not directory.is_dir():
        return False
    written = read_json_object(directory / CHECKSUMS)
    checksums = _checksums(directory)
    damaged = [name for name in written if checksums.get(name) != written[name]]
    # A model without checksums was not written to its end, or its list is damaged.
    if not written:
        damaged = [CHECKSUMS]
    if damaged:
        logger.warning("%s: %s is damaged; the published file is converted again", directory, damaged[0])
    return not damaged


def _cache(cache_dir: str | os.PathLike | None) -> Path:
    return Path(constants.HF_HOME, "hf_any3d", "published") if cache_dir is None else Path(cache_dir)


def _title(size: str | None) -> str:
    return "" if size is None else f"-{size}"


def _exclusively(folder: Path) -> Any:
    """Lock a folder of the cache; other processes and threads wait, and then find what they need."""
    folder.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(folder / ".lock")
