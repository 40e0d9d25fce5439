"""The embedded shapes: real household objects in 18 classes, for first steps, tests and demonstrations.

They come with the package. README.md in their folder is their card, with authors and licenses.
"""

import os
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_any3d.data.catalog import parquet
from hf_any3d.data.parquet.published_dataset import License
from hf_any3d.utils.shipped import ASSETS

LICENSE = License(
    "other",
    "CC0 1.0, CC BY 3.0 or CC BY 3.0 US; the latter two ask to name the authors. The columns license and creator have "
    "both for each shape",
    "https://creativecommons.org/licenses/by/3.0/",
)
SPLITS = ("train", "test")


def load(data_dir: str | os.PathLike | None = None, **options: Any) -> DatasetDict:
    """Read the embedded shapes.

    Args:
        data_dir: another folder with train.parquet and test.parquet; None takes those that come with the package.
        options: further arguments of `datasets.load_dataset`, such as `cache_dir`.
    """
    folder = ASSETS if data_dir is None else Path(data_dir)
    return parquet.load(data_files={split: folder / f"{split}.parquet" for split in SPLITS}, **options)
