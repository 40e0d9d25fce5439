"""Objaverse as PointLLM published it: coloured clouds with captions and conversations about them."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.benchmarks import Benchmark, Licence, SplitSource, load_benchmark
from hf_any3d.data.catalog.pointllm_annotations import TYPES, Annotation, read_annotation
from hf_any3d.data.catalog.pointllm_clouds import (
    CloudAdder,
    cloud_features,
    cloud_path,
    find_clouds,
    read_cloud,
    stamp_clouds,
    stream_clouds,
)
from hf_any3d.data.catalog.pointllm_splits import SPLITS, PointLLMSplits

WHICH = {
    "brief": TYPES[:1],
    "complex": TYPES[1:],
    "detailed": TYPES[1:2],
    "single_round": TYPES[2:3],
    "multi_round": TYPES[3:],
}
"""Choice of training conversations -> their types in the files."""

BROKEN_COLORS = frozenset({"6760e543e1d645d5aaacd3803bcae524", "b91c0711149d460a8004f9c06d3b7f38"})
"""Objects whose published colours are damaged."""

CLOUDS = ("8192_npy", "objaverse_data", "data/8192_npy", "data/objaverse_data", "")
ANNOTATIONS = ("anno_data", "data/anno_data", "")

BENCHMARK = Benchmark(
    name="objaverse_captions",
    description=(
        "PointLLM's data on Objaverse: 660 thousand objects as coloured clouds of 8,192 points with a brief caption "
        "each, and 70 thousand detailed descriptions and conversations about some of them. 3,000 objects are reserved "
        "and in no training conversation; the test captions belong to 200 of them."
    ),
    homepage="https://huggingface.co/datasets/RunsenXu/PointLLM",
    licence=Licence(
        "other",
        "the collection under ODC-By 1.0; each object of Objaverse under a Creative Commons licence of its own, some "
        "of them not commercial; the program they come with under CC BY-NC-SA 4.0",
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
    layout="""  8192_npy/00000054c36d44a2a483bdbff31d8edf_8192.npy, ...   or objaverse_data/; x, y, z and colours
  anno_data/PointLLM_brief_description_660K_filtered.json   anno_data/ may be left out
  anno_data/PointLLM_complex_instruction_70K.json           for other than brief ones
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
    **conversion,
) -> DatasetDict | IterableDatasetDict:
    """Read clouds of Objaverse with what is said about them.

    Rows have `points` (8192, 3), as in the files, neither centred nor scaled, and `colors` (8192, 3) from 0 to 1;
    `object_id`; `conversation_type`; `conversations`, a list of turns with `from` ("human" or "gpt") and `value`, as
    stored: `<point>` marks the place of the cloud. Brief and detailed descriptions also have `caption`, the answer.
    `to_messages` of `pointllm_annotations` makes messages for chat templates.

    No object is in two splits: what is reserved is in no training row, and `validation` holds the reserved objects
    without the 200 of `test`. Both hold brief captions, whatever `which` says.

    Args:
        data_dir: the folder with the clouds in `8192_npy` or `objaverse_data` and the annotations beside them or in
            `anno_data`; the folder above `data` may be given too.
        which: training conversations: "brief" (660 thousand), "complex" (70 thousand) or only its "detailed",
            "single_round" or "multi_round" ones.
        splits: those wanted, of "train", "validation" and "test"; files of others need not be there.
        colors: False leaves colours out, and keeps the two objects whose colours are damaged.
        ids: only these objects.
        limit: at most so many rows of each split, the first ones.
        streaming: read each cloud from its own file when its row comes. Only the texts are converted then; otherwise
            the clouds are copied to Parquet, 196 kB each.
        conversion: `cache_dir`, `verify` and `on_error` of `hf_any3d.data.benchmarks.load_benchmark`. `verify` also
            compares the lengths of the annotation files with the published ones and refuses objects named twice.

    Raises:
        ValueError: an option out of range; ids without annotation; another number of entries than published; a file
            that cannot be read, with file and entry.
        FileNotFoundError: files are missing; says where they are to be had.

    Source: Xu et al., "PointLLM", Sec. 3.
    """
    if which not in WHICH:
        raise ValueError(f"which is {which!r}; expected one of {', '.join(WHICH)}")
    wanted = [splits] if isinstance(splits, str) else list(splits)
    if not wanted or any(split not in SPLITS for split in wanted):
        raise ValueError(f"splits is {splits!r}; expected some of {', '.join(SPLITS)}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit is {limit!r}; expected None or a whole number from 1")
    ids = None if ids is None else frozenset([ids] if isinstance(ids, str) else ids)
    if ids is not None and not ids:
        raise ValueError("ids is empty; expected None or some objects")
    root = BENCHMARK.root(data_dir)
    clouds = find_clouds([root / place for place in CLOUDS])
    if clouds is None:
        raise BENCHMARK.not_found(f"{root}: no clouds such as 8192_npy/…_8192.npy")
    folders = [root / place for place in ANNOTATIONS]
    folder = next((place for place in folders if next(place.glob("PointLLM_*.json"), None)), folders[0])

    files = PointLLMSplits(BENCHMARK, folder, root, verify=conversion.get("verify", True))
    unwanted = BROKEN_COLORS if colors else frozenset()
    chosen = files.choose("brief" if which == "brief" else "complex", WHICH[which], wanted, unwanted, ids)
    chosen = {split: (path, some[:limit]) for split, (path, some) in chosen.items()}

    clouds_columns = cloud_features(colors)
    columns = Features(
        {
            "object_id": Value("string"),
            "conversation_type": Value("string"),
            "conversations": List({"from": Value("string"), "value": Value("string")}),
        }
    )
    if which in ("brief", "detailed"):
        columns["caption"] = Value("string")
    whole = ids is None and limit is None
    options = {
        "colors": colors,
        "clouds": not streaming,
        "ids": ids and hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
        "limit": limit,
    }
    rows = load_benchmark(
        BENCHMARK,
        root,
        {split: _source(path, some, clouds, streaming) for split, (path, some) in chosen.items()},
        columns if streaming else Features({**clouds_columns, **columns}),
        variant=which if whole else f"{which}_part",
        options=options,
        **conversion,
    )
    if not streaming:
        return rows
    return stream_clouds(rows, CloudAdder(clouds, clouds_columns, conversion.get("on_error") == "skip"))


def _source(path: Path, annotations: Sequence[Annotation], clouds: Path, streaming: bool) -> SplitSource:
    def read(annotation: Annotation) -> Iterable[Mapping[str, object]]:
        row = read_annotation(path, annotation)
        row["caption"] = row["conversations"][1]["value"]
        yield row if streaming else {**row, **read_cloud(cloud_path(clouds, row["object_id"]))}

    def describe(annotation: Annotation) -> str:
        return f"{cloud_path(clouds, annotation.object_id)} (entry {annotation.number} of {path})"

    # Which entries are chosen depends on other files too, such as the list of reserved objects.
    chosen = hashlib.sha256(np.array([annotation.number for annotation in annotations], np.int64).tobytes())
    sound = dict.fromkeys(annotation.object_id for annotation in annotations if annotation.object_id)
    digest, missing = stamp_clouds(clouds, sound)
    digest = chosen.hexdigest() if streaming else f"{chosen.hexdigest()} {digest}"
    return SplitSource(annotations, read, [path], len(annotations), describe, missing, digest)
