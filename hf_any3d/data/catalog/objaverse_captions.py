"""Objaverse as published by PointLLM: colored clouds with captions and conversations about them."""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Array2D, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.catalog.pointllm_annotations import TYPES, Annotation, annotation_row, scan_entries
from hf_any3d.data.files import PointCloudError, PointCloudFileError, file_errors
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import find_folder, read_lines, read_npy
from hf_any3d.data.parquet.rows import checked_row
from hf_any3d.modeling.file_stamps import file_stamp

logger = logging.getLogger(__name__)

NUM_POINTS = 8192
SUFFIX = f"_{NUM_POINTS}.npy"
MOST_SHARDS = 256
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
"""Fewest and most entries of a file; those of training are published only as rounded numbers."""

WHICH = {
    "brief": TYPES[:1],
    "complex": TYPES[1:],
    "detailed": TYPES[1:2],
    "single_round": TYPES[2:3],
    "multi_round": TYPES[3:],
}
"""Choice of training conversations -> their types in the files."""

BROKEN_COLORS = frozenset({"6760e543e1d645d5aaacd3803bcae524", "b91c0711149d460a8004f9c06d3b7f38"})
"""Objects whose published colors are damaged."""

CONVERSATIONS = {"conversations": List({"from": Value("string"), "value": Value("string")})}
# Places below the given folder, in the order in which they are searched
CLOUDS = ("8192_npy", "objaverse_data", "data/8192_npy", "data/objaverse_data", "")
ANNOTATIONS = ("anno_data", "data/anno_data", "")

DATASET = PublishedDataset(
    name="objaverse_captions",
    description=(
        "PointLLM's data on Objaverse: 660 thousand objects as colored clouds of 8,192 points with a brief caption "
        "each, and 70 thousand detailed descriptions and conversations about some of them. 3,000 objects are reserved "
        "and in no training conversation; the test captions belong to 200 of them."
    ),
    homepage="https://huggingface.co/datasets/RunsenXu/PointLLM",
    license=License(
        "other",
        "the collection under ODC-By 1.0; each object of Objaverse under its own Creative Commons license, some of "
        "them non-commercial; the program they come with under CC BY-NC-SA 4.0",
        "https://huggingface.co/datasets/RunsenXu/PointLLM",
    ),
    citation="""@inproceedings{xu2024pointllm,
  title = {PointLLM: Empowering Large Language Models to Understand Point Clouds},
  author = {Xu, Runsen and Wang, Xiaolong and Wang, Tai and Chen, Yilun and Pang, Jiangmiao and Lin, Dahua},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2024}
}""",
    expected_counts={which: {"test": 200} for which in WHICH},
    origin=(
        "Get the files by `hf download RunsenXu/PointLLM --repo-type dataset` (78 GB packed, about 130 GB unpacked; "
        "their page is https://huggingface.co/datasets/RunsenXu/PointLLM), join and unpack the clouds by "
        "`cat Objaverse_660K_8192_npy_split_a* | tar -xz`, and pass the folder above 8192_npy as data_dir"
    ),
    layout="""  8192_npy/00000054c36d44a2a483bdbff31d8edf_8192.npy, ...   or objaverse_data/; x, y, z and colors
  anno_data/PointLLM_brief_description_660K_filtered.json   anno_data/ may be left out
  anno_data/PointLLM_complex_instruction_70K.json           unless which="brief"
  anno_data/PointLLM_brief_description_val_3000_GT.json     or PointLLM_brief_description_660K.json
                                                            and val_object_ids_3000.txt
  anno_data/PointLLM_brief_description_val_200_GT.json""",
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    which: str = "brief",
    splits: Sequence[str] = SPLITS,
    colors: bool = True,
    ids: Iterable[str] | None = None,
    limit: int | None = None,
    streaming: bool = False,
    copy_clouds: bool = True,
    **conversion: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read clouds of Objaverse with captions and conversations about them.

    Rows have `points` (8192, 3), as in the files, neither centered nor scaled, and `colors` (8192, 3) from 0 to 1;
    `object_id`; `conversation_type`; `conversations`, a list of turns with `from` ("human" or "gpt") and `value`, as
    stored: `<point>` marks the place of the cloud. Brief and detailed descriptions also have `caption`, the answer.
    `to_messages` of `pointllm_annotations` converts them to messages for chat templates.

    No object is in two splits: reserved objects are in no training row, and `validation` has the reserved objects
    without the 200 of `test`. Both have brief captions, whatever `which` is.

    Args:
        data_dir: the folder with the clouds in `8192_npy` or `objaverse_data` and the annotations next to them or in
            `anno_data`; the folder above `data` may be given too.
        which: training conversations: "brief" (660 thousand), "complex" (70 thousand) or only its "detailed",
            "single_round" or "multi_round" ones.
        splits: some of "train", "validation" and "test"; files of others may be missing.
        colors: False leaves colors out, and keeps the two objects whose colors are damaged.
        ids: only these objects.
        limit: at most this many rows of each split, the first ones.
        streaming: read each cloud from its own file together with its row. Only the texts are converted then;
            otherwise the clouds are copied, 196 kB each.
        copy_clouds: False does the same for rows that are read in any order, as training does: each access to a row
            reads the file of its cloud. `on_error="skip"` then leaves out rows whose file is missing; a damaged file
            raises an error when its row is read.
        conversion: `cache_dir`, `verify` and `on_error` of `hf_any3d.data.parquet.load_published`. `verify` also
            compares the lengths of the annotation files with the published ones.

    Source: Xu et al., "PointLLM", Sec. 3.
    """
    one_of("which", which, WHICH)
    names = [one_of("split", split, SPLITS) for split in _listed(splits)]
    if ids is not None:
        ids = frozenset(_listed(ids))
    root = DATASET.root(data_dir)
    clouds = find_folder([root / place for place in CLOUDS], f"*{SUFFIX}")
    if clouds is None:
        raise DATASET.not_found(f"{root}: no clouds such as 8192_npy/…_8192.npy")
    folders = [root / place for place in ANNOTATIONS]
    # Without any annotations, the error about the missing files names the first folder.
    annotations = find_folder(folders, "PointLLM_*.json") or folders[0]
    # The default of `verify` is that of `load_published`, which gets the option as well.
    files = _AnnotationFiles(annotations, root, conversion.get("verify", True))
    skip = conversion.get("on_error") == "skip"
    in_files = streaming or not copy_clouds
    sources = {}
    # Damaged colors make an object useless only where colors are read.
    for split, entries in _choose(files, which, names, BROKEN_COLORS if colors else frozenset(), ids).items():
        # Before files are looked for, of which there may be 660 thousand
        entries = entries[:limit]
        # A row that is asked for by its number cannot be left out later.
        if skip and not copy_clouds:
            entries = _with_clouds(entries, clouds)
        sources[split] = _source(files.path(which, split), entries, clouds, in_files)
    cloud_columns = cloud_features(colors)
    columns = Features({"object_id": Value("string"), "conversation_type": Value("string"), **CONVERSATIONS})
    # A conversation has no single answer that describes the object.
    if which in ("brief", "detailed"):
        columns["caption"] = Value("string")
    options = {
        "colors": colors,
        "clouds": not in_files,
        # There may be hundreds of thousands, and options are stored with the conversion.
        "ids": ids and hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
        "limit": limit,
    }
    rows = load_published(
        DATASET,
        root,
        sources,
        columns if in_files else Features({**cloud_columns, **columns}),
        # A part has no published number of rows to compare with.
        variant=which if ids is None and limit is None else f"{which}_part",
        options=options,
        **conversion,
    )
    texts = cast(DatasetDict, rows)
    if streaming:
        return _streams(texts, CloudAdder(clouds, cloud_columns, skip))
    if copy_clouds:
        return texts
    return texts.with_transform(CloudAdder(clouds, cloud_columns, skip=False))


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _with_clouds(annotations: Sequence[Annotation], clouds: Path) -> list[Annotation]:
    """Return the annotations of objects whose file exists, and warn of each of the others."""
    kept = []
    for annotation in annotations:
        # Those that name no object are refused when they are read.
        if not annotation.object_id or (cloud := cloud_path(clouds, annotation.object_id)).exists():
            kept.append(annotation)
        else:
            logger.warning("left out %s: no such file", cloud)
    return kept


def _streams(texts: DatasetDict, add_clouds: "CloudAdder") -> IterableDatasetDict:
    """Return streams of rows that read each cloud together with its texts."""
    streams = {}
    for split, table in texts.items():
        # Many shards, since each process and worker needs one of its own.
        stream = table.to_iterable_dataset(num_shards=min(MOST_SHARDS, len(table)))
        features = Features({**add_clouds.features, **table.features})
        # A batch may become empty, as a single row could not.
        streams[split] = stream.map(add_clouds, batched=True, batch_size=1, features=features)
        for name in ("description", "citation", "homepage", "license"):
            setattr(streams[split].info, name, getattr(table.info, name))
    return IterableDatasetDict(streams)


def _source(path: Path, annotations: Sequence[Annotation], clouds: Path, in_files: bool) -> SplitSource:
    """Return the source of the rows of a split; with `in_files`, clouds stay in their files."""

    def read(annotation: Annotation) -> Iterable[Mapping[str, object]]:
        with file_errors(f"{path}: entry {annotation.number}", "annotation"):
            row = annotation_row(json.loads(annotation.text))
        # Conversion drops it again where the dataset has no such column.
        row["caption"] = row["conversations"][1]["value"]
        yield row if in_files else {**row, **read_cloud(cloud_path(clouds, row["object_id"]))}

    def describe(annotation: Annotation) -> str:
        return f"{cloud_path(clouds, annotation.object_id)} (entry {annotation.number} of {path})"

    # The choice of entries depends on other files too, such as the list of reserved objects.
    chosen = hashlib.sha256(np.array([annotation.number for annotation in annotations], np.int64).tobytes())
    # Each object once: several conversations may be about it.
    objects = dict.fromkeys(annotation.object_id for annotation in annotations if annotation.object_id)
    stamps = hashlib.sha256()
    missing = []
    for object_id in objects:
        try:
            # The path is joined as text, since this runs for each of 660 thousand files.
            stamps.update(f"{object_id} {file_stamp(f'{clouds}/{object_id}{SUFFIX}')}\n".encode())
        except FileNotFoundError:
            missing.append(cloud_path(clouds, object_id))
    # Files of clouds change the rows only where they are copied.
    key = chosen.hexdigest() if in_files else f"{chosen.hexdigest()} {stamps.hexdigest()}"
    return SplitSource(annotations, read, [path], len(annotations), describe, missing, key)


class _AnnotationFiles:
    """The annotation files in a folder; each is read once, and with `verify` its length is checked."""

    def __init__(self, folder: Path, root: Path, verify: bool):
        self.folder = folder
        self.root = root
        self.verify = verify
        self.there = {name for name in LENGTHS if (folder / name).is_file()}
        # Reserved objects have a file of their own, or are listed, and then selected among all.
        self.lists_reserved = VALIDATION_IDS in self.there and VALIDATION not in self.there
        # Read once, as several splits may come from one file of a gigabyte
        self._entries: dict[str, list[Annotation]] = {}

    def name(self, which: str, split: str) -> str:
        """Return the name of the file with the entries of a split."""
        if split == "test":
            return TEST
        if split == "validation":
            return FULL if self.lists_reserved else VALIDATION
        if which != "brief":
            return COMPLEX
        return FULL if FULL in self.there and FILTERED not in self.there else FILTERED

    def path(self, which: str, split: str) -> Path:
        """Return the path of that file."""
        return self.folder / self.name(which, split)

    def require(self, which: str, splits: Sequence[str]) -> None:
        """Check that all files are there that these splits need."""
        # Files of the chosen splits, and those that tell which objects they may not have
        needed = {self.name(which, split) for split in splits}
        if FULL in needed and VALIDATION not in self.there:
            needed.add(VALIDATION_IDS)  # selects the reserved objects among all
        if "validation" in splits:
            needed.add(TEST)  # whose objects are no part of it
        DATASET.require([self.folder / name for name in sorted(needed)], self.root)

    def entries(self, name: str) -> list[Annotation]:
        """Read the entries of a file, none if it is missing; several splits may come from the same file."""
        if name not in self._entries:
            annotations = []
            if name in self.there:
                for number, (value, text) in enumerate(scan_entries(self.folder / name)):
                    try:
                        row = annotation_row(value)
                    except (PointCloudError, LookupError, TypeError, AttributeError):
                        row = {"object_id": "", "conversation_type": ""}  # reading the row raises the error
                    annotations.append(Annotation(number, text, row["object_id"], row["conversation_type"]))
                self._check_length(name, len(annotations))
            self._entries[name] = annotations
        return self._entries[name]

    def objects(self, name: str) -> frozenset[str]:
        """Return the objects that the entries of a file are about."""
        return frozenset(entry.object_id for entry in self.entries(name))

    def reserved_objects(self) -> frozenset[str]:
        """Return the objects that are in no training row."""
        if not self.lists_reserved:
            return self.objects(VALIDATION)
        reserved = frozenset(read_lines(self.folder / VALIDATION_IDS))
        self._check_length(VALIDATION_IDS, len(reserved))
        return reserved

    def _check_length(self, name: str, count: int) -> None:
        least, most = LENGTHS[name]
        if self.verify and not least <= count <= most:
            raise PointCloudFileError(
                f"{self.folder / name}: {count:,} entries; expected {least:,} to {most:,}. Get the file again, or "
                "pass verify=False for a subset of your own"
            )


def _choose(
    files: _AnnotationFiles,
    which: str,
    splits: Sequence[str],
    unwanted: Collection[str],
    ids: Collection[str] | None,
) -> dict[str, list[Annotation]]:
    """Return the annotations of each split; with `ids`, splits without any are left out.

    Malformed entries are kept, so that reading them raises an error, unless `ids` are given.
    """
    files.require(which, splits)
    reserved = files.reserved_objects()
    test = files.objects(TEST)
    # No object of one split is in another.
    unwanted_in = {"train": {*unwanted, *reserved, *test}, "validation": {*unwanted, *test}, "test": unwanted}
    chosen: dict[str, list[Annotation]] = {}
    named: set[str] = set()  # objects
    for split in splits:
        # The other splits have brief captions, whatever is trained on.
        types = WHICH[which] if split == "train" else TYPES[:1]
        only = None if ids is None else frozenset(ids)
        name = files.name(which, split)
        # The full file has the captions of all objects, from which the reserved ones are taken.
        if (split, name) == ("validation", FULL):
            only = reserved if only is None else reserved & only
        entries = files.entries(name)
        unwanted_here = unwanted_in[split]
        kept = []
        for entry in entries:
            if only is not None and entry.object_id not in only:
                continue
            is_malformed = not entry.object_id
            if is_malformed or (entry.type in types and entry.object_id not in unwanted_here):
                kept.append(entry)
        if kept or ids is None:
            chosen[split] = kept
        named.update(entry.object_id for entry in kept)
    # An id with a typing error would otherwise only make the dataset smaller.
    unknown = sorted(set(ids or ()) - named)
    if unknown:
        raise ValueError(
            f"ids names {len(unknown)} objects without conversations of {', '.join(splits)} in {files.folder}, the "
            f"first: {unknown[0]!r}"
        )
    return chosen


def cloud_features(colors: bool) -> Features:
    """Return the columns of clouds."""
    names = ("points", "colors") if colors else ("points",)
    return Features({name: Array2D((NUM_POINTS, 3), "float32") for name in names})


def cloud_path(folder: Path, object_id: str) -> Path:
    """Return the file of an object's cloud."""
    return folder / f"{object_id}{SUFFIX}"


def read_cloud(path: Path) -> dict[str, np.ndarray]:
    """Read `points` and `colors`, each (8192, 3); colors are red, green and blue from 0 to 1."""
    table = read_npy(path)
    if table.shape != (NUM_POINTS, 6):
        raise PointCloudFileError(f"{path}: an array of shape {table.shape}; expected ({NUM_POINTS}, 6)")
    return {"points": table[:, :3], "colors": table[:, 3:]}


@dataclass(frozen=True)
class CloudAdder:
    """Add the clouds in a folder to a batch of rows.

    With `skip`, rows whose cloud cannot be read are left out with a warning.
    """

    folder: Path
    features: Features
    skip: bool

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list]:
        """Return the batch with the columns of clouds, without the rows left out."""
        # Numbers of the rows whose cloud could be read, and these clouds
        kept = []
        clouds = []
        for number, object_id in enumerate(batch["object_id"]):
            try:
                path = cloud_path(self.folder, str(object_id))
                with file_errors(path, "cloud"):
                    clouds.append(checked_row(read_cloud(path), self.features))
            except (PointCloudError, FileNotFoundError) as error:
                if not self.skip:
                    raise
                logger.warning("left out %s", error)
                continue
            kept.append(number)
        # Without the rows that were left out, so that all columns are of one length
        rows = {name: [values[number] for number in kept] for name, values in batch.items()}
        return {**{name: [cloud[name] for cloud in clouds] for name in self.features}, **rows}
