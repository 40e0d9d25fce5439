"""What a cluster of Ray is asked for, with a stand-in that does the work here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from datasets import Features, Value

from hf_any3d.data.file_conversion import CloudColumns
from hf_any3d.many_files import executors, rows as rows_module
from hf_any3d.many_files.executors import Workers, start
from hf_any3d.many_files.rows import CloudRows, _TableMaker


class Blocks:
    """Stands in for a dataset of Ray."""

    def __init__(self, items):
        self.items, self.asked = items, {}
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=None), enable_progress_bars=1)

    def map_batches(self, maker, *, fn_constructor_args, **asked):
        self.asked, self.made = asked, (maker, fn_constructor_args)
        return self


@pytest.fixture
def ray(monkeypatch):
    """A stand-in for the package, and the datasets that were made."""
    ray, data, state = ModuleType("ray"), ModuleType("ray.data"), SimpleNamespace(made=[], running=True, begun=[])

    def from_items(items, override_num_blocks):
        state.made.append(Blocks(items))
        state.made[-1].blocks = override_num_blocks
        return state.made[-1]

    data.from_items, data.ActorPoolStrategy, ray.data = from_items, lambda **given: given, data
    ray.is_initialized, ray.init = lambda: state.running, lambda **given: state.begun.append(given)
    state.resources = {"CPU": 8.0, "GPU": 2.0}
    ray.cluster_resources = lambda: state.resources
    for name, module in (("ray", ray), ("ray.data", data)):
        monkeypatch.setitem(sys.modules, name, module)
    state.module = ray
    return state


@pytest.mark.parametrize(
    ("running", "address", "begun"),
    [
        (True, None, []),
        (
            False,
            None,
            [
                {"log_to_driver": False, "logging_level": "warning", "include_dashboard": False}
                | {"object_store_memory": 200 * 1024 * 1024}
            ],
        ),
        (False, "auto", [{"log_to_driver": False, "logging_level": "warning"}]),
    ],
)
def test_a_cluster_that_runs_is_used_and_a_new_one_is_small_and_silent(running, address, begun, ray, monkeypatch):
    for name, value in (("RAY_ADDRESS", address), ("RAY_USAGE_STATS_ENABLED", None)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    ray.running = running
    assert start() is ray.module and ray.begun == begun
    assert executors.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    start()
    assert executors.os.environ["RAY_USAGE_STATS_ENABLED"] == "1", "who wants them gets them"


@pytest.mark.parametrize(
    ("workers", "resources", "size", "cpus"),
    [
        (None, {"CPU": 4.0}, 3, 0.9),
        (None, {"CPU": 1.0}, 1, 0.9),
        (None, {"CPU": 99.0}, 4, 0.9),
        (Workers(4), {"CPU": 4.0}, 4, 0.9),
        (Workers(2, cpus=4, gpus=1), {"CPU": 8.0, "GPU": 2.0}, 2, 3.6),
    ],
)
def test_rows_are_a_dataset_that_leaves_a_place_for_other_steps(workers, resources, size, cpus, ray, monkeypatch):
    monkeypatch.setattr(rows_module, "_FILES_AT_A_TIME", 3)
    ray.resources = resources
    rows = CloudRows(tuple(f"{number}.ply" for number in range(13)), CloudColumns(8, 9), "drop")
    dataset = rows.dataset(workers)
    assert dataset.blocks == 5 and dataset.items[0] == {"files": "0.ply\n1.ply\n2.ply"}
    assert dataset.items[-1] == {"files": "12.ply"}
    assert dataset.asked == {
        "batch_size": 1,
        "batch_format": "numpy",
        "compute": {"size": size, "max_tasks_in_flight_per_actor": 2},
        "num_cpus": cpus,
        "num_gpus": 0 if workers is None else workers.gpus,
    }
    maker, (given, placed) = dataset.made
    assert maker is _TableMaker and placed == (workers or Workers())
    assert given == CloudRows((), CloudColumns(8, 9), "drop")


@pytest.mark.parametrize(("count", "lengths"), [(0, []), (16, [16]), (35, [16, 16, 3])])
@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_a_process_makes_tables_of_a_few_rows(count, lengths, gpus, device, monkeypatch):
    asked, threads = [], []
    monkeypatch.setattr(rows_module, "limit_threads", threads.append)

    def compute(files):
        asked.append(files)
        return iter([{"path": str(number), "n": number} for number in range(count)])

    features = Features({"path": Value("string"), "n": Value("int8")})
    rows = SimpleNamespace(features=features, open=lambda device: asked.append(device) or compute)
    tables = list(_TableMaker(rows, Workers(cpus=3, gpus=gpus))({"files": ["a\nb"]}))
    assert asked == [device, ["a", "b"]] and threads == [3]
    assert [len(table) for table in tables] == lengths
    assert [number for table in tables for number in table["n"].to_pylist()] == list(range(count))
    assert all(str(table.schema.field("n").type) == "int8" for table in tables)
