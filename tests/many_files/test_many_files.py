"""Rows of many files: the same as those of plain calls, written once each, whatever happens to processes."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import PointCloudProcessor, many_files, read_point_cloud
from hf_any3d.data.files.input_files import InputFile, list_files
from hf_any3d.many_files import executors
from hf_any3d.many_files.executors import EXECUTORS, LocalExecutor, Workers
from hf_any3d.many_files.parts import Parts, PartWriter
from hf_any3d.many_files.work import Shard
from hf_any3d.pipelines import default_model
from studies.speed import many_files as benchmark
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.cli.conftest import run
from tests.errors import raises
from tests.tiny_detr3d import BOX_FRAME, answering_detector

FILES = Path(__file__).parents[1] / "files"
NUM_CLOUDS = 60

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A folder with clouds of different sizes, a mesh, a damaged file, and files that are no clouds."""
    folder, generator = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    (folder / "inner").mkdir()
    for number in range(NUM_CLOUDS - 1):
        np.save(folder / f"{number:03d}.npy", generator.normal(size=(20 + number, 3)).astype(np.float32))
    shutil.copy(FILES / "chair.ply", folder / "inner" / "chair.ply")
    (folder / "bad.ply").write_bytes((FILES / "chair.ply").read_bytes()[:400])
    for name in ("README.md", "metadata.csv", ".hidden.ply"):
        (folder / name).write_text("not points")
    return folder


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A cluster of two processors on this machine, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
        yield ray
        ray.shutdown()


def write_here(rows: many_files.CloudRows, folder: Path, files_per_part: int = 100) -> None:
    """Write rows without a cluster."""
    for part, start in enumerate(range(0, len(rows), files_per_part)):
        write_part(rows, str(folder), part, rows.files[start : start + files_per_part])


def write_part(rows: many_files.CloudRows, folder: str, part: int, files: Sequence[str]) -> dict:
    """Write one part without a cluster."""
    with Parts(folder, rows.settings).opened():
        (result,) = PartWriter(rows, folder).open()(Shard(f"{part:05d}", tuple(files)))
    return result


def opened(folder: Path) -> datasets.Dataset:
    """The rows, as any program opens them."""
    files = sorted(map(str, folder.glob("*.parquet")))
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / ".cache"))


@contextmanager
def elsewhere_claimed(folder: Path) -> Iterator[None]:
    """Another process writes to the folder meanwhile."""
    code = f"import fcntl; f = open({str(folder / '.lock')!r}, 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield
        other.communicate(b"\n")


@pytest.mark.slow
def test_nothing_is_lost_or_double_when_a_process_is_killed(ray, scans, tmp_path):
    rows, killed = many_files.read_point_clouds(scans), []

    def kill_the_first(part):
        if not killed:
            killed.append(part["process"])
            os.kill(int(part["process"].rpartition(":")[2]), signal.SIGKILL)

    # An earlier run wrote a part.
    write_part(rows, str(tmp_path / "out"), 0, rows.files[10:20])
    written = many_files.to_parquet(rows, tmp_path / "out", workers=2, files_per_part=3, progress=kill_the_first)
    assert (written.rows, written.before, written.failed) == (NUM_CLOUDS + 1, 10, 1)
    assert set(written.processes) - set(killed)
    found = opened(tmp_path / "out")
    assert sorted(found["path"]) == sorted(rows.files)
    for row in found:
        if row["path"].endswith("bad.ply"):
            assert np.isnan(row["points"]) and "has 128 bytes for element 'vertex'" in row["error"]
        else:
            assert row["error"] is None
            cloud = read_point_cloud(row["path"])
            expected = cloud.points if not cloud.is_mesh else row["points"]
            np.testing.assert_array_equal(np.float32(row["points"]), expected)
    assert ray.data.read_parquet(str(tmp_path / "out")).count() == len(rows)
    assert list((tmp_path / "out").glob(".*.tmp")) == []


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    model = tmp_path_factory.mktemp("detector")
    answering_detector().save_pretrained(model)
    PointCloudProcessor(num_points=40, **BOX_FRAME).save_pretrained(model)
    return model


def test_rows_with_boxes_and_captions_are_a_dataset_of_ray(ray, scans, detector, tmp_path):
    chat, model = tiny_chat_pipeline(), tmp_path / "model"
    chat.save_pretrained(model)
    rows = many_files.read_point_clouds([scans / "001.npy", scans / "bad.ply"], num_points=16)
    rows = many_files.detect(rows, detector, threshold=0.1, keep_points=True)
    rows = many_files.caption(rows, model, text="What?", max_new_tokens=4, do_sample=False)
    first, second = rows.dataset(Workers(1)).take_all()
    assert np.shape(first["points"]) == (16, 3) and first["error"] is None
    here, _ = rows.open()(rows.files)
    assert 0 < len(here["boxes"]) == len(first["boxes"])
    for found, box in zip(first["boxes"], here["boxes"], strict=True):
        assert found["label"] == box["label"] and found["score"] == pytest.approx(box["score"], abs=1e-5)
    expected = chat(str(scans / "001.npy"), text="What?", max_new_tokens=4, do_sample=False)
    assert first["caption"] == expected[0]["generated_text"]
    assert second["points"] is second["caption"] is None and "bad.ply" in second["error"]


@pytest.mark.slow
@pytest.mark.usefixtures("libraries_as_they_were", "ray")
def test_the_command_has_the_table_of_the_local_engine(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(scans.parent)
    tables = {}
    for engine in ("local", "ray"):
        command = ("predict", scans.name, "--output", tmp_path / f"{engine}.jsonl", "--resume")
        code, out, err = run(*command, *(("--ray", "--workers", 1) if engine == "ray" else ()))
        assert code == 2 and "61 files, 1 failed" in out and f"{scans.name}/bad.ply: has 128 bytes" in err
        tables[engine] = [json.loads(line) for line in (tmp_path / f"{engine}.jsonl").read_text().splitlines()]
    assert [row["file"] for row in tables["ray"]] == [row["file"] for row in tables["local"]]
    for found, expected in zip(tables["ray"], tables["local"], strict=True):
        assert (found.keys(), found.get("error")) == (expected.keys(), expected.get("error"))
        scores = [{one["label"]: one["score"] for one in row.get("predictions", ())} for row in (found, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_bad_files_of_models_are_rows_and_answers_those_of_plain_pipelines(scans, tmp_path):
    files = [scans / "inner" / "chair.ply", scans / "bad.ply", *sorted(scans.glob("*.npy"))[:9]]
    rows = many_files.read_point_clouds(files)
    answers = many_files.embed(many_files.classify(rows, top_k=2, batch_size=4), default_model())
    write_here(answers, tmp_path / "out")
    found = opened(tmp_path / "out")
    assert found.column_names == ["path", "predictions", "features", "error"]
    assert [row["error"] is not None for row in found] == [False, True, *[False] * 9]
    classify = pipeline("point-cloud-classification", model=default_model(), device="cpu")
    features = pipeline("point-cloud-feature-extraction", model=default_model(), device="cpu")
    for row in found.select([0, 2, 10]):
        expected = classify(row["path"], top_k=2)
        assert [one["label"] for one in row["predictions"]] == [one["label"] for one in expected]
        assert [one["score"] for one in row["predictions"]] == pytest.approx(
            [one["score"] for one in expected], abs=1e-5
        )
        np.testing.assert_allclose(row["features"], features(row["path"])["pooled"], atol=1e-4)


@pytest.mark.slow
def test_runs_resume_with_new_files_and_failed_ones(scans, tmp_path):
    folder, out = shutil.copytree(scans, tmp_path / "scans"), tmp_path / "out"
    rows = many_files.read_point_clouds(folder, num_points=16)
    write_here(rows, out, files_per_part=20)
    (out / "part-00001.parquet").unlink()
    np.save(folder / "new.npy", np.ones((9, 3)))
    shutil.copy(FILES / "chair.ply", folder / "bad.ply")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    more = many_files.read_point_clouds(folder, num_points=16)
    written = many_files.to_parquet(more, out, engine="local", retry=True)
    # A part of 20 rows is gone, one row failed, one is new.
    assert (written.rows, written.before, written.failed) == (62, 61 - 20 - 1, 0)
    assert sum(path.stat().st_mtime_ns == time for path, time in before.items()) == len(before) - 1
    assert sorted(opened(out)["path"]) == sorted(more.files)
    assert many_files.to_parquet(more, out, engine="local").processes == ()
    # Another cloud in a file of equal size and time of modification.
    changed = folder / "003.npy"
    status = changed.stat()
    changed.write_bytes((lambda data: data[:-4] + b"\0\0\x80?")(changed.read_bytes()))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    old = opened(out).filter(lambda row: row["path"] == str(changed))[0]
    assert many_files.to_parquet(more, out, engine="local").before == 61
    new = opened(out).filter(lambda row: row["path"] == str(changed))
    assert len(new) == 1 and not np.array_equal(new[0]["points"], old["points"])


@pytest.mark.slow
def test_several_processes_of_this_machine_write_the_parts_of_one(scans, tmp_path, monkeypatch):
    # New ones would take seconds to import everything.
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forks)
    rows = many_files.read_point_clouds(scans, num_points=8)
    one = many_files.to_parquet(rows, tmp_path / "one", engine="local", files_per_part=20)
    two = many_files.to_parquet(rows, tmp_path / "two", engine="local", workers=2, files_per_part=20)
    assert (two.rows, two.before, two.failed) == (one.rows, one.before, one.failed) == (NUM_CLOUDS + 1, 0, 1)
    assert one.processes == (f"{socket.gethostname()}:{os.getpid()}",) and one.processes[0] not in two.processes
    assert benchmark.check(tmp_path / "one", tmp_path / "two") == NUM_CLOUDS + 1


@pytest.mark.slow
def test_a_killed_process_of_this_machine_ends_a_run_that_goes_on_later(scans, tmp_path, monkeypatch):
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forks)
    rows, read = many_files.read_point_clouds(scans, num_points=8), InputFile.read

    def die(file, on_invalid="drop"):
        if file.name.endswith("055.npy"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(file, on_invalid)

    with monkeypatch.context() as patch:
        patch.setattr(InputFile, "read", die)
        with pytest.raises(ChildProcessError, match="one of the processes was killed"):
            many_files.to_parquet(rows, tmp_path / "out", engine="local", workers=2, files_per_part=10)
    kept = len(list((tmp_path / "out").glob("*.parquet")))
    written = many_files.to_parquet(rows, tmp_path / "out", engine="local", files_per_part=10)
    assert kept > 0 and written.before >= 10 * kept - 9 and written.rows == NUM_CLOUDS + 1
    assert sorted(opened(tmp_path / "out")["path"]) == sorted(rows.files)


@pytest.mark.slow
def test_columns_may_have_the_names_of_the_loop(scans, tmp_path):
    rows = many_files.read_point_clouds([scans / "001.npy", scans / "bad.ply"], num_points=4)
    write_here(many_files.classify(rows, column="file", keep_points=True), tmp_path / "out")
    found = opened(tmp_path / "out")
    assert found["path"] == list(rows.files) and [row["file"] is None for row in found] == [False, True]


@pytest.mark.slow
def test_folders_of_other_rows_are_refused_and_kept(scans, tmp_path):
    write_here(many_files.read_point_clouds(scans, num_points=4), tmp_path / "out")
    with raises(ValueError, naming="'num_points'"):
        many_files.to_parquet(many_files.read_point_clouds(scans, num_points=5), tmp_path / "out")
    with pytest.raises(ValueError, match="has other files; give a new folder"):
        many_files.to_parquet(many_files.read_point_clouds(scans), scans)
    with raises(BlockingIOError, naming="another folder"), elsewhere_claimed(tmp_path / "out"):
        many_files.to_parquet(many_files.read_point_clouds(scans, num_points=4), tmp_path / "out")
    assert len(opened(tmp_path / "out")) == NUM_CLOUDS + 1


def test_a_file_that_ends_processes_of_ray_gets_an_error_and_those_beside_it_none(ray):
    # Pickled by its code, so that processes need not import this file.
    class Ending:
        def open(self):
            def answer(shard):
                for name in shard.files:
                    if name == "missing":
                        raise FileNotFoundError("no such scan")
                    if name == "deadly":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if name == "lost":
                        # As with a lost machine, Ray does not replace the process.
                        sys.modules["ray"].actor.exit_actor()
                    yield name

            return answer

        def given_up(self, shard, error):
            return [error]

    executor = executors.RayExecutor(Workers(1))
    a, error, b, c = executor.run(Ending(), [Shard("0", ("a", "deadly", "b")), Shard("1", ("c",))])
    assert (a, b, c) == ("a", "b", "c") and error.startswith("deadly: processes ended while they had it")
    with pytest.raises(FileNotFoundError, match="^no such scan$"):
        list(executor.run(Ending(), [Shard("0", ("a", "missing"))]))
    # Files of a process that is not replaced get no error: none of them is at fault.
    results = executor.run(Ending(), [Shard("0", ("a", "b")), Shard("1", ("c", "lost")), Shard("2", ("b",))])
    assert [next(results), next(results)] == ["a", "b"]
    with raises(ChildProcessError, naming="The same call continues this run"):
        next(results)


def test_buckets_are_read_and_written(scans, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("inner/chair.ply", "bad.ply", "001.npy", "metadata.csv", ".hidden.ply"):
        memory.pipe_file(f"/scans/{name}", (scans / name).read_bytes())
    rows = many_files.read_point_clouds("memory://scans")
    assert rows.files == ("memory:///scans/001.npy", "memory:///scans/bad.ply", "memory:///scans/inner/chair.ply")
    part = write_part(rows, "memory://out", 0, rows.files)
    assert (part["rows"], part["failed"]) == (3, 1)
    parts = Parts("memory://out", rows.settings)
    assert parts.finish(rows.files) == (3, 1) and parts.numbers() == [0]
    chair, stamp = memory.cat_file("/scans/inner/chair.ply"), InputFile(rows.files[2]).stamp()
    assert parts.resume({rows.files[2]: stamp}, retry=False) == set(rows.files)
    memory.pipe_file("/scans/inner/chair.ply", chair)
    assert InputFile(rows.files[2]).stamp() != stamp
    assert InputFile("memory://scans/none").stamp() == "missing"
    assert parts.resume({}, retry=True) == {rows.files[0], rows.files[2]}
    others = many_files.read_point_clouds("memory://scans", num_points=3)
    with raises(ValueError, naming="other settings"), Parts("memory://out", others.settings).opened():
        pass
    assert len(InputFile(f"file://{scans}/001.npy").read().data) == 21
    assert list_files([scans / "001.npy", f"{scans}/001.npy"]) == [str(scans / "001.npy")]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda rows: many_files.read_point_clouds("nowhere"), FileNotFoundError, "nowhere: no such file or folder"),
        (lambda rows: many_files.read_point_clouds([]), FileNotFoundError, "paths is empty"),
        (lambda rows: many_files.read_point_clouds("tests", on_invalid="keep"), ValueError, "on_invalid is 'keep'"),
        (lambda rows: many_files.classify(rows, top_k=0), ValueError, "top_k is 0"),
        (lambda rows: many_files.classify(rows, batch_size=-1), ValueError, "batch_size is -1"),
        (lambda rows: many_files.to_parquet(rows, "x", files_per_part=-1), ValueError, "files_per_part is -1"),
        (lambda rows: many_files.to_parquet(rows, "x", workers=0), ValueError, "workers is 0"),
        (lambda rows: many_files.classify(rows, "outputs/typo"), Exception, "outputs/typo"),
        (lambda rows: many_files.classify(rows, column="path"), ValueError, "column is 'path'"),
        (lambda rows: many_files.embed(rows, default_model(), feature="odd"), ValueError, "feature is 'odd'"),
        (
            lambda rows: many_files.detect(rows, default_model(), threshold=2),
            ValueError,
            "threshold is 2; expected at most 1",
        ),
        (lambda rows: many_files.detect(rows, default_model(), top_k=0), ValueError, "top_k is 0"),
        (lambda rows: many_files.caption(rows, default_model(), odd=1), TypeError, "unknown arguments: odd"),
        (lambda rows: many_files.to_parquet(rows, "out", engine="odd"), KeyError, "odd"),
        (lambda rows: LocalExecutor(Workers(2, gpus=1)), ValueError, "gpus is 1 for 2 processes of this machine"),
        (lambda rows: Workers(gpus=1).number_in({"CPU": 2}, 5), ValueError, "expected at most 2 CPUs and 0 GPUs"),
    ],
)
def test_wrong_arguments_are_named(scans, tmp_path, monkeypatch, call, error, text):
    rows = many_files.read_point_clouds(scans)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    np.save(tmp_path / "tests" / "a.npy", np.ones((3, 3)))
    with pytest.raises(error, match=text):
        call(rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"),
    [(0, None, (0, "cpu")), (0, "cuda:1", (1, "cuda")), (2, None, (1, "cuda")), (2, "cpu", (0, "cpu"))],
)
def test_each_process_of_a_cluster_gets_the_gpu_that_its_model_needs(gpus, wanted, expected, monkeypatch):
    resources = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    cluster = SimpleNamespace(cluster_resources=lambda: resources)
    for name in ("start", "import_ray"):
        monkeypatch.setattr(executors, name, lambda: cluster)
    executor, device = executors.RayExecutor(Workers(count=3, cpus=2)).placed(wanted)
    assert (executor.workers, device) == (Workers(count=3, cpus=2, gpus=expected[0]), expected[1])


def test_without_ray_the_error_names_the_extra(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises(ImportError, naming="'hf-any3d[ray]'"):
        many_files.to_parquet(many_files.read_point_clouds(scans), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_benchmark_compares_both_sides(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "start", lambda: None)
    # Processes of Ray would take seconds to start.
    monkeypatch.setitem(EXECUTORS, "ray", lambda workers: LocalExecutor())
    output = tmp_path / "figures.json"
    options = ["--files", "100", "--points", "20", "--rounds", "1", "--files-per-part", "60", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["many_files.py", *options])
    benchmark.main()
    report = json.loads(output.read_text())
    assert report["files"] == 100 and report["rounds"][0]["ray"]["processes"] == 1
    assert report["driver_peak"] > 0 and "faster" in capsys.readouterr().out
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, points in ((first, 20), (second, 19)):
        (folder / "clouds").mkdir(parents=True)
        benchmark.build(folder / "clouds", 96, 20)
        rows = many_files.read_point_clouds(folder / "clouds", num_points=points)
        benchmark.convert(rows, folder / "out", 96, engine="local")
    with raises(AssertionError, naming="part-00000.parquet"):
        benchmark.check(first / "out", second / "out")
