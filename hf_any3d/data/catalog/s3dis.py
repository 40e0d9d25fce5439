"""S3DIS: scanned rooms of six areas of three buildings, each point with the class of what it lies on."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, List, Value

from hf_any3d.data.benchmarks import Benchmark, Licence, SplitSource, load_benchmark
from hf_any3d.data.blocks import split_into_blocks
from hf_any3d.data.catalog.s3dis_rooms import (
    CLASS_NAMES,
    LAYOUTS,
    PUBLISHED_ROOMS,
    AnnotatedRooms,
    ArrayRooms,
    Room,
)

AREAS = (1, 2, 3, 4, 5, 6)
UP_AXIS = "z"

_COUNTS = {}
for _area in AREAS:
    _rooms = sum(room.area == _area for room in PUBLISHED_ROOMS)
    _COUNTS[f"area_{_area}"] = {"train": len(PUBLISHED_ROOMS) - _rooms, "test": _rooms}
    _COUNTS[f"area_{_area}_blocks"] = {"test": _rooms}

BENCHMARK = Benchmark(
    name="s3dis",
    description=(
        "S3DIS: 272 scanned rooms in six areas of three buildings, as coloured clouds in metres, z up, each point of "
        "one of 13 classes. One area is for testing."
    ),
    homepage="https://github.com/alexsax/2D-3D-Semantics",
    licence=Licence(
        "other",
        "for research that is not commercial, after filling in the authors' form",
        "https://docs.google.com/forms/d/e/1FAIpQLScDimvNMCGhy_rmBA2gHfDu3naktRm6A8BPwAWWDv-Uhm6Shw/viewform",
    ),
    citation="""@inproceedings{armeni20163d,
  title = {3D Semantic Parsing of Large-Scale Indoor Spaces},
  author = {Armeni, Iro and Sener, Ozan and Zamir, Amir R. and Jiang, Helen and Brilakis, Ioannis and
            Fischer, Martin and Savarese, Silvio},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2016}
}""",
    expected_counts=_COUNTS,
    origin=(
        "Fill in the form at "
        "https://docs.google.com/forms/d/e/1FAIpQLScDimvNMCGhy_rmBA2gHfDu3naktRm6A8BPwAWWDv-Uhm6Shw/viewform, get "
        "Stanford3dDataset_v1.2_Aligned_Version.zip, unpack it and pass the folder above it as data_dir"
    ),
    layout="""  Stanford3dDataset_v1.2_Aligned_Version/                          layout "annotations"
    Area_1/hallway_1/Annotations/ceiling_1.txt, wall_1.txt, ...    x y z red green blue in each line
  stanford_indoor3d/Area_1_hallway_1.npy, ...                      layout "npy", as other programs prepare it""",
    class_names=CLASS_NAMES,
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    test_area: int = 5,
    layout: str | None = None,
    block_size: float | None = None,
    block_points: int = 4096,
    block_overlap: float = 0.0,
    seed: int = 0,
    **conversion,
) -> DatasetDict:
    """Read S3DIS, one row a room; training rooms may be cut into blocks.

    Rows have `points` (num_points, 3) in metres, z up, the smallest x, y and z of the room at 0; `colors`
    (num_points, 3) uint8; `labels` (num_points,), one of 13 classes; `room`, such as "Area_1_hallway_1"; and `area`.

    A room has a million points or so. Reading all of them for a crop of some thousand is slow, so training rooms can
    be stored as blocks. Rooms of the test split stay whole: they are judged as a whole, each point once.

    Args:
        data_dir: one of the folders in the layout, or the one above it.
        test_area: the area of the test split, 1 to 6; the others are for training. Papers report 5, the only area
            whose building has no other.
        layout: "npy" or "annotations"; None takes the first of these that is there.
        block_size: edge in metres of the square columns into which training rooms are cut, 1.0 in most papers; None
            leaves them whole.
        block_points: points of a block.
        block_overlap: share of a column's edge that it has in common with the next one.
        seed: draws which points of a column go together.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.benchmarks.load_benchmark`.

    Raises:
        ValueError: an argument out of range; rooms that are not among the published ones; a piece with a line that is
            no point.
        FileNotFoundError: rooms are missing; says where they are to be had.

    Source: Armeni et al., "3D Semantic Parsing of Large-Scale Indoor Spaces"; blocks by Qi et al., "PointNet".
    """
    if test_area not in AREAS:
        raise ValueError(f"test_area is {test_area!r}; expected 1 to 6")
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)} or None")
    options: dict[str, object] = {}
    if block_size is not None:
        options = {"size": block_size, "points": block_points, "overlap": block_overlap, "seed": seed}
        # Wrong arguments are told here, not by the first room.
        split_into_blocks(np.zeros((1, 3)), block_points, block_size, block_overlap, up_axis=UP_AXIS)
    root = BENCHMARK.root(data_dir)
    name, store = _find(root, LAYOUTS if layout is None else (layout,))
    rooms = store.rooms()
    if conversion.get("verify", True):
        unknown = sorted({*rooms} - {*PUBLISHED_ROOMS})
        if unknown:
            raise ValueError(
                f"{store.path(unknown[0])}: not a published room, one of {len(unknown)}; remove them, or pass "
                "verify=False for rooms of your own"
            )
        rooms = PUBLISHED_ROOMS

    def whole(room: Room) -> Iterator[Mapping[str, object]]:
        arrays = store.read(room)
        yield {**vars(arrays), "room": str(room), "area": room.area}

    def blocks(room: Room) -> Iterator[Mapping[str, object]]:
        arrays = vars(store.read(room))
        index = split_into_blocks(
            arrays["points"], block_points, block_size, block_overlap, up_axis=UP_AXIS, generator=seed
        )
        for block in index:
            yield {**{key: value[block] for key, value in arrays.items()}, "room": str(room), "area": room.area}

    sources = {}
    for split in ("train", "test"):
        units = [room for room in rooms if (room.area == test_area) == (split == "test")]
        cut = split == "train" and block_size is not None
        sources[split] = _source(store, units, blocks if cut else whole, one_row_each=not cut)
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "colors": Array2D((None, 3), "uint8"),
            "labels": List(ClassLabel(names=list(CLASS_NAMES))),
            "room": Value("string"),
            "area": Value("int64"),
        }
    )
    variant = f"area_{test_area}" + ("" if block_size is None else "_blocks")
    options["layout"] = name
    return load_benchmark(BENCHMARK, store.folder, sources, features, variant=variant, options=options, **conversion)


def _find(root: Path, layouts: Iterable[str]) -> tuple[str, ArrayRooms | AnnotatedRooms]:
    for name in layouts:
        for place in LAYOUTS[name].places:
            store = LAYOUTS[name](root / place)
            if store.rooms():
                return name, store
    raise BENCHMARK.not_found(f"{root}: no rooms in layout {' or '.join(layouts)}")


def _source(
    store: ArrayRooms | AnnotatedRooms,
    rooms: Sequence[Room],
    read: Callable[[Room], Iterator[Mapping[str, object]]],
    one_row_each: bool,
) -> SplitSource:
    missing = [store.path(room) for room in rooms if not store.path(room).exists()]
    files = [file for room in rooms for file in store.files(room)]
    return SplitSource(
        rooms,
        read,
        files,
        num_rows=len(rooms) if one_row_each else None,
        describe=lambda room: str(store.path(room)),
        missing=missing,
    )
