"""Reading a large dataset needs constant memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Array2D, Features, Value

NUM_CLOUDS, NUM_POINTS = 1_500, 4096
DATA_MB = NUM_CLOUDS * NUM_POINTS * 3 * 4 / 2**20
ALLOWED_MB = 20

READ = """
import json, sys
import torch
from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator, load_point_dataset
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.training.rows import streamed_training_rows

def own_memory():
    # Allocated memory, without pages of memory-mapped files, which the system may free at any time.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

def read(rows, shuffle):
    seen, total, memory = 0, 0, []
    for batch in torch.utils.data.DataLoader(rows, 50, shuffle=shuffle, collate_fn=PointCloudCollator()):
        seen, total = seen + len(batch["labels"]), total + int(batch["labels"].sum())
        memory.append(own_memory())
    print(json.dumps({"seen": seen, "total": total, "first": memory[0], "most": max(memory)}))

files = {"data_dir": sys.argv[1], "split": "train"}
read(ArrowRows(load_point_dataset("parquet", cache_dir=sys.argv[1] + "-cache", **files)), True)
processor = PointCloudProcessor(num_points=16, sampling="first", scale=None)
read(streamed_training_rows(load_point_dataset("parquet", streaming=True, **files), processor), False)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write clouds to ten files, column by column, which takes a second instead of a minute."""
    folder = tmp_path / "large"
    folder.mkdir()
    features = Features({"points": Array2D((None, 3), "float32"), "label": Value("int64")})
    schema = features.arrow_schema
    generator = np.random.default_rng(0)
    shard = NUM_CLOUDS // 10
    for number in range(10):
        numbers = pa.array(generator.random(shard * NUM_POINTS * 3, dtype=np.float32))
        points = pa.ListArray.from_arrays(np.arange(0, len(numbers) + 1, 3, dtype=np.int32), numbers)
        clouds = pa.ListArray.from_arrays(np.arange(0, len(points) + 1, NUM_POINTS, dtype=np.int32), points)
        clouds = pa.ExtensionArray.from_storage(schema.field("points").type, clouds)
        labels = pa.array(np.arange(number * shard, (number + 1) * shard))
        table = pa.Table.from_arrays([clouds, labels], schema=schema)
        pyarrow.parquet.write_table(table, folder / f"train-{number:05d}-of-00010.parquet", row_group_size=30)
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to tell kinds of memory apart")
def test_many_clouds_are_read_in_constant_memory(folder):
    assert DATA_MB > 3 * ALLOWED_MB
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", READ, str(folder)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    mapped, streamed = map(json.loads, done.stdout.splitlines())
    for result in (mapped, streamed):
        assert result["seen"] == NUM_CLOUDS and result["total"] == NUM_CLOUDS * (NUM_CLOUDS - 1) // 2
        assert result["most"] - result["first"] < ALLOWED_MB, (mapped, streamed)
