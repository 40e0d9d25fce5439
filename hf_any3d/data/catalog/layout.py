"""Which split and class a file of a folder belongs to, from the names of the folders above it."""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Folder names that say a split -> the name of the split."""

LAYOUTS = "class/file, split/class/file or class/split/file, with splits named train, validation or test"


@dataclass(frozen=True)
class LabelledFile:
    """A file with its class and split."""

    path: Path
    label: str
    split: str


def find_labelled_files(root: Path, suffixes: set[str]) -> tuple[dict[str, list[LabelledFile]], dict[str, int]]:
    """Find the files of a folder and what their place in it says.

    Hidden files and folders are passed over.

    Args:
        root: the folder; see `LAYOUTS` for what it may look like.
        suffixes: endings of the files wanted, in lower case with their dot.

    Returns:
        Files of each split in the order of their names, and how often each other ending was seen. Files directly in
        `root` have no class and count as others, unless there are only such.

    Raises:
        FileNotFoundError: no such folder, or none of the files wanted in it.
        ValueError: files at another depth, or a folder of a class without any file wanted.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found: list[tuple[str, ...]] = []
    others: dict[str, int] = defaultdict(int)
    leaves: set[tuple[str, ...]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        if not folders:
            leaves.add(parts)
        for name in sorted(name for name in files if not name.startswith(".")):
            suffix = Path(name).suffix.lower()
            if suffix in suffixes:
                found.append((*parts, name))
            else:
                others[suffix] += 1
    if not found:
        raise FileNotFoundError(f"{root}: no point cloud in this folder; readable are {', '.join(sorted(suffixes))}")
    nested = [parts for parts in found if len(parts) > 1]
    for (name,) in set(found) - set(nested if nested else found):
        others[Path(name).suffix.lower()] += 1  # beside the folders of classes lie lists and notes, not clouds
    found = nested or found
    empty = [parts for parts in sorted(leaves - {parts[:-1] for parts in found}) if len(parts) == len(found[0]) - 1]
    if empty:
        names = ", ".join("/".join(parts) for parts in empty)
        raise ValueError(f"{root}: no point cloud in the folders {names}; remove them or add files")
    splits: dict[str, list[LabelledFile]] = defaultdict(list)
    for file in _labelled(root, found):
        splits[file.split].append(file)
    return dict(splits), dict(others)


def _labelled(root: Path, found: list[tuple[str, ...]]) -> list[LabelledFile]:
    depths = {len(parts) for parts in found}
    if depths == {2}:
        return [LabelledFile(root.joinpath(*parts), parts[0], "train") for parts in found]
    if depths == {3}:
        for place in (0, 1):
            if all(parts[place].lower() in SPLIT_NAMES for parts in found):
                return [
                    LabelledFile(root.joinpath(*parts), parts[1 - place], SPLIT_NAMES[parts[place].lower()])
                    for parts in found
                ]
    example = "/".join(max(found, key=len) if max(depths) > 2 else min(found, key=len))
    raise ValueError(f"{root}: {example} fits no layout; expected {LAYOUTS}")
