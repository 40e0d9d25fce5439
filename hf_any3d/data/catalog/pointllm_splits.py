"""Which annotation file of PointLLM holds which split, and which objects are kept apart."""

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from hf_any3d.data.benchmarks import Benchmark
from hf_any3d.data.benchmarks.lists import read_lines
from hf_any3d.data.catalog.pointllm_annotations import TYPES, Annotation, list_annotations
from hf_any3d.data.files import PointCloudFileError

SPLITS = ("train", "validation", "test")

FULL = "PointLLM_brief_description_660K.json"
FILTERED = "PointLLM_brief_description_660K_filtered.json"
COMPLEX = "PointLLM_complex_instruction_70K.json"
VALIDATION = "PointLLM_brief_description_val_3000_GT.json"
VALIDATION_IDS = "val_object_ids_3000.txt"
TEST = "PointLLM_brief_description_val_200_GT.json"

LENGTHS = {
    FULL: (655_000, 664_999),
    FILTERED: (655_000, 664_999),
    COMPLEX: (65_000, 74_999),
    VALIDATION: (3000, 3000),
    VALIDATION_IDS: (3000, 3000),
    TEST: (200, 200),
}
"""Fewest and most entries of a file; those of training are published in tens of thousands only."""


class PointLLMSplits:
    """Find the annotations of each split.

    Args:
        benchmark: says where the files are to be had.
        folder: of the annotation files.
        root: the folder given, for errors.
        verify: compare lengths with the published ones and refuse objects with two captions.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, root: Path, verify: bool):
        self._benchmark, self._folder, self._root, self._verify = benchmark, folder, root, verify
        self._entries = cache(self._read)

    def choose(
        self,
        training: str,
        types: Collection[str],
        splits: Sequence[str],
        unwanted: Collection[str],
        ids: Collection[str] | None,
    ) -> dict[str, tuple[Path, list[Annotation]]]:
        """Give the file and the annotations of each split.

        Entries that are not sound stay in, so that reading them says what is wrong; where only some objects are
        wanted they are left out.

        Args:
            training: "brief" or "complex".
            types: conversations of the training split.
            splits: those wanted.
            unwanted: objects to leave out everywhere.
            ids: the only objects wanted; None takes all. A split without any of them is left out.

        Raises:
            FileNotFoundError: a file of these splits is missing.
            PointCloudFileError: a file that is no list of annotations, of another length, or with an object twice.
            ValueError: objects without annotation.
        """
        files = self._files(training, splits)
        reserved, test = self._reserved(), self._objects(TEST)
        unwanted_in = {"train": {*unwanted, *reserved, *test}, "validation": {*unwanted, *test}, "test": unwanted}
        if files.get("validation") == FULL:
            self._check_reserved(reserved)
        chosen, seen = {}, set()
        for split, name in files.items():
            wanted = frozenset(types if split == "train" else TYPES[:1])
            only = reserved if (split, name) == ("validation", FULL) else None
            kept = [
                entry
                for entry in self._entries(name)
                if (only is None or entry.object_id in only)
                and (ids is None or entry.object_id in ids)
                and (not entry.object_id or entry.type in wanted and entry.object_id not in unwanted_in[split])
            ]
            if kept or ids is None:
                chosen[split] = self._folder / name, kept
            if ids is not None:
                seen.update(entry.object_id for entry in kept)
        unknown = sorted(set(ids or ()) - seen)
        if unknown:
            raise ValueError(
                f"ids names {len(unknown)} objects without conversations of {', '.join(splits)} in {self._folder}, "
                f"the first: {unknown[0]!r}"
            )
        return chosen

    def _files(self, training: str, splits: Sequence[str]) -> dict[str, str]:
        """The file of each split; all that is needed for them is there."""
        listed = self._is_there(VALIDATION_IDS) and not self._is_there(VALIDATION)
        files = {"train": COMPLEX, "validation": FULL if listed else VALIDATION, "test": TEST}
        if training == "brief":
            files["train"] = FULL if self._is_there(FULL) and not self._is_there(FILTERED) else FILTERED
        files = {split: files[split] for split in splits}
        needed = set(files.values())
        if FULL in needed and not self._is_there(VALIDATION):
            needed.add(VALIDATION_IDS)  # among all objects, these are the reserved ones
        if "validation" in files:
            needed.add(TEST)
        self._benchmark.require([self._folder / name for name in sorted(needed)], self._root)
        return files

    def _is_there(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def _reserved(self) -> frozenset[str]:
        """The reserved objects, as far as there are files that name them."""
        if self._is_there(VALIDATION) or not self._is_there(VALIDATION_IDS):
            return self._objects(VALIDATION)
        lines = read_lines(self._folder / VALIDATION_IDS)
        self._check_length(VALIDATION_IDS, len(lines))
        return frozenset(lines)

    def _check_reserved(self, reserved: frozenset[str]) -> None:
        lacking = sorted(reserved - self._objects(FULL)) if self._verify else []
        if lacking:
            raise PointCloudFileError(
                f"{self._folder / VALIDATION_IDS}: {len(lacking)} objects have no caption in {FULL}, the first: "
                f"{lacking[0][:60]!r}"
            )

    def _objects(self, name: str) -> frozenset[str]:
        """The objects that a file names; none where it is not there."""
        if not self._is_there(name):
            return frozenset()
        return frozenset(entry.object_id for entry in self._entries(name) if entry.object_id)

    def _read(self, name: str) -> list[Annotation]:
        path = self._folder / name
        entries = list_annotations(path)
        self._check_length(name, len(entries))
        if self._verify and name != COMPLEX:
            first: dict[str, int] = {}
            for entry in entries:
                if entry.object_id and first.setdefault(entry.object_id, entry.number) != entry.number:
                    raise PointCloudFileError(
                        f"{path}: entries {first[entry.object_id]} and {entry.number} are both of object "
                        f"{entry.object_id}; expected one caption an object. verify=False keeps both"
                    )
        return entries

    def _check_length(self, name: str, found: int) -> None:
        least, most = LENGTHS[name]
        if self._verify and not least <= found <= most:
            expected = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            raise PointCloudFileError(
                f"{self._folder / name}: {found:,} entries; expected {expected}. Get the file again, or pass "
                "verify=False for a subset of your own"
            )
