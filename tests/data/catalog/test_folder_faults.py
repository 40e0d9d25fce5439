"""One bad file among thousands, and a conversion that is killed."""

import logging
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog import folder
from tests.forks import FORKED

COUNT = 2000
BAD = "mug/1234.npy"


def write_clouds(root: Path, count: int) -> Path:
    for kind in ("mug", "tile"):
        (root / kind).mkdir(parents=True)
    for number in range(count):
        np.save(root / ("mug", "tile")[number % 2] / f"{number:04d}.npy", np.full((3, 3), number, np.float32))
    return root


@pytest.mark.slow
def test_one_bad_file_among_two_thousand_is_named_or_left_out(tmp_path, cache_dir, caplog):
    root = write_clouds(tmp_path / "scans", COUNT)
    (root / BAD).write_bytes((root / BAD).read_bytes()[:-5])
    with pytest.raises(ValueError):
        load_point_dataset("folder", data_dir=root, cache_dir=cache_dir)
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        rows = load_point_dataset("folder", data_dir=root, cache_dir=cache_dir, on_error="skip", split="train")
    reason, summary = (record.getMessage() for record in caplog.records)
    assert reason.count(BAD) == 1 and "1234.npy" in reason
    assert summary == f"skipped 1 of {COUNT} files: {root / BAD}"
    assert len(rows) == COUNT - 1 and BAD not in rows["file"][:].tolist()
    numbers = [int(Path(name).stem) for name in rows["file"][:].tolist()]
    np.testing.assert_array_equal(np.stack(list(rows["points"][:]))[:, 0, 0], numbers)


@pytest.mark.slow
def test_a_killed_conversion_leaves_a_cache_that_can_be_used(tmp_path, cache_dir, monkeypatch):
    root = write_clouds(tmp_path / "scans", 12)
    here, read = FORKED.Event(), folder.read_point_cloud

    def slow(path, **options):
        if path.endswith("0007.npy"):
            here.set()
            time.sleep(60)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 2)
        patch.setattr(folder, "read_point_cloud", slow)
        child = FORKED.Process(target=folder.load, args=(str(root),), kwargs={"cache_dir": cache_dir})
        child.start()
    assert here.wait(60)
    child.kill()
    child.join()
    begun = [path for path in Path(cache_dir).rglob("*.arrow")]
    assert begun and all(".incomplete" in str(path) for path in begun), "killed in the middle of writing"
    rows = load_point_dataset("folder", data_dir=root, cache_dir=cache_dir, split="train")
    assert len(rows) == 12
    for row in rows:
        assert (row["points"] == int(Path(row["file"]).stem)).all()
    assert not [path for path in Path(cache_dir).rglob("*.incomplete*") if path.is_dir() or path.suffix == ".arrow"]
