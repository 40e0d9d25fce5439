"""Damaged metadata in a folder gives rows or one error that names the folder's file.

ANY3D_MUTATIONS says how many folders of each kind are tried; the default keeps the suite quick.
"""

import time

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_any3d.data.catalog import folder
from tests.data.catalog.test_folder_metadata import ROWS, write
from tests.data.catalog.test_mutated_trees import MUTATIONS, SECONDS, mutate
from tests.data.clouds import points

KINDS = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "described metadata.parquet")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_metadata_gives_rows_or_one_named_error(kind, tmp_path):
    for row in ROWS:
        path = tmp_path / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points())
    chosen = tmp_path / kind.split()[-1]
    if kind.startswith("described"):
        features = Features({"file_name": Value("string"), "label": ClassLabel(names=["cup", "mug"])})
        rows = {"file_name": [row["file_name"] for row in ROWS], "label": [1, 0]}
        Dataset.from_dict(rows, features=features).to_parquet(chosen)
    else:
        write(chosen, ROWS)
    whole, generator, refused = chosen.read_bytes(), np.random.default_rng(0), 0
    for number in range(MUTATIONS):
        chosen.write_bytes(mutate(whole, generator))
        start = time.process_time()
        try:
            rows = list(folder.load(tmp_path, streaming=True)["train"])
        except ValueError as error:
            refused += 1
            assert str(tmp_path) in str(error), f"mutation {number}: no file named in {error!r}"
        else:
            assert 1 <= len(rows) <= 2
        assert time.process_time() - start < SECONDS, f"mutation {number} took too long"
    assert refused
