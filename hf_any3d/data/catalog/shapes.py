"""The embedded shapes: real household objects in 18 classes, for first steps, tests and demonstrations.

examples/data/README.md is their card, with authors and licences.
"""

import os
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_any3d.data.catalog import parquet
from hf_any3d.data.conversion.published_dataset import Licence

LICENCE = Licence(
    "other",
    "CC0 1.0 or CC BY 3.0, which asks to name the authors: both are in the columns of each of the embedded shapes",
    "https://creativecommons.org/licenses/by/3.0/",
)
SPLITS = ("train", "test")


def load(data_dir: str | os.PathLike | None = None, **options: Any) -> DatasetDict:
    """Read the embedded shapes.

    Args:
        data_dir: the folder with train.parquet and test.parquet; None takes examples/data of the source checkout that
            this package is imported from.
        options: further arguments of `datasets.load_dataset`, such as `cache_dir`.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
    """
    folder = Path(__file__).parents[3] / "examples" / "data" if data_dir is None else Path(data_dir)
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {' and no '.join(missing)}. The embedded shapes come with the source code, not with the "
            "installed package: run from a checkout, or pass data_dir=, the folder examples/data of one"
        )
    return parquet.load(data_files=files, **options)
