"""A dataset of a few small files, to try the machinery that all share."""

import time
from pathlib import Path

import numpy as np
from datasets import Array2D, Features, Value

from hf_any3d.data.files import read_point_cloud
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published

COUNTS = {"train": 12, "test": 4}

TOY = PublishedDataset(
    name="toy",
    description="Clouds for tests.",
    homepage="https://example.org/toy",
    license=License("other", "for tests alone", "https://example.org/terms"),
    citation="@misc{toy}",
    expected_counts={"default": COUNTS},
    origin="Ask at https://example.org/toy",
    layout="  train/0.npy, 1.npy, …",
    class_names=("mug", "tile", "cup"),
)
FEATURES = Features({"points": Array2D((None, 3), "float32"), "label": TOY.class_label(), "file": Value("string")})


def cloud(split: str, number: int) -> np.ndarray:
    """The cloud in `split/number.npy`: 5 points and one more for each number."""
    return np.random.default_rng([len(split), number]).uniform(-1, 1, (5 + number, 3)).astype(np.float32)


def write_tree(root: Path, counts: dict[str, int] = COUNTS) -> Path:
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for number in range(count):
            np.save(root / split / f"{number}.npy", cloud(split, number))
    return root


def load_toy(root: Path, cache_dir, opened: list | None = None, known=False, fail_at=None, here=None, **options):
    """Load the tree.

    Args:
        root: the tree.
        cache_dir: of the conversion.
        opened: gets the name of each file that is read.
        known: whether the number of rows is known before reading.
        fail_at: stop, as Ctrl-C does, instead of reading this file.
        here: set this event there and wait instead.
        options: of `load_published`.
    """

    def read(path: Path):
        name = path.relative_to(root).as_posix()
        if name == fail_at:
            if here is None:
                raise KeyboardInterrupt
            here.set()
            time.sleep(60)
        if opened is not None:
            opened.append(name)
        yield {"points": read_point_cloud(path).points, "label": int(path.stem) % 3, "file": name}

    sources = {}
    for split in ("train", "test"):
        files = sorted((root / split).iterdir(), key=lambda path: int(path.stem))
        sources[split] = SplitSource(files, read, files, num_rows=len(files) if known else None)
    return load_published(TOY, root, sources, FEATURES, cache_dir=cache_dir, **options)
