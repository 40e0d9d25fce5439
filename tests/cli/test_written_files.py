"""Every output of every command is whole, or an error that names it: on full disks, read-only, by any name."""

from __future__ import annotations

import inspect
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import laspy
import numpy as np
import pytest
import torch
import typer
from laspy.vlrs.known import WktCoordinateSystemVlr
from PIL import Image
from rasterio.crs import CRS

from hf_any3d.cli import app
from hf_any3d.cli.outputs import output_options
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.cli.conftest import FILES, run
from tests.cli.test_compare import write_evaluation
from tests.extensions import HAS_SURVEY

pytestmark = pytest.mark.slow
# Options and arguments with paths that are read, by the commands that have them.
INPUTS = {
    "predict": {"text_features"},
    "zero-shot": {"text_features"},
    "segment": {"text_features"},
    "inventory": {"learn_from", "checkpoints"},
    "chat": {"file"},
    "demo": {"examples"},
    "train": {"earlier"},
    "push": {"folder"},
    "convert": {"code_template", "arguments"},
    "evaluate labels": {"predicted", "truth"},
    "evaluate numbers": {"predicted", "truth"},
    "evaluate classifier": {"recipe"},
    "data from-depth": {"depth", "intrinsics", "color"},
    "data annotations": {"source"},
    "data suggest": {"file"},
}


@dataclass(frozen=True)
class Row:
    """An output of a command.

    Args:
        option: The command and its option.
        words: The words of the command before the option; names in braces are those of `inputs`.
        endings: Endings of the output, each tried on its own; "" stands for a folder.
        is_new: Whether an output that exists is refused.
        also: Another option of the command that writes a file.
    """

    option: str
    words: str
    endings: tuple[str, ...]
    is_new: bool = False
    also: str = ""


TABLES = (".json", ".csv")
VIEWS = (".html", ".png")
_ASK = "{chair} --model {classifier}"
_SEGMENT = "segment {cloud} --model {parts} --category table"
_REPORT = "evaluate classifier {classifier} {splits} --report-facts {facts}"
ROWS = (
    Row("predict --output", f"predict {_ASK}", (*VIEWS, *TABLES)),
    Row("predict --output", f"predict {_ASK} --resume", (".jsonl", ".parquet", ".csv", ".json")),
    Row("zero-shot --output", "zero-shot {chair} --model {zero-shot} --labels chair,lamp", (".html", ".csv")),
    Row(
        "segment --output",
        "segment {cloud} --model {parts} --category table",
        (*VIEWS, *TABLES, ".ply", ".obj", ".npz", ""),
    ),
    Row("segment --output", f"{_SEGMENT} --resume", ("",)),
    Row("segment --output", "segment {tile} --model {parts} --category table --field part", (".las", ".laz")),
    Row("detect --output", "detect {chair} --model {detector}", (".html", *TABLES)),
    Row("detect --output", "detect {chair} --model {detector} --resume", (".jsonl",)),
    Row("features --output", "features {scans} --model {classifier}", (".npz", ".npy", *VIEWS, *TABLES)),
    Row("features --output", f"features {_ASK} --resume", (".parquet",)),
    Row("reconstruct --output", "reconstruct {chair} --model {autoencoder}", (".ply", *VIEWS, *TABLES, "")),
    Row("show --output", "show {chair}", (*VIEWS, ".ply", ".npz")),
    Row("data prepare --output", "data prepare {classes}", ("",), is_new=True),
    Row("data check --output", "data check {chair}", TABLES),
    Row("data from-depth --output", "data from-depth {depth} --intrinsics {camera}", (".ply", "")),
    Row("data annotations --output", "data annotations {labeled} --to label-cloud", ("",), is_new=True),
    Row("data example --output", "data example chair.ply new.las ddp_cpu.yaml", ("",), is_new=True),
    Row("data convert --output", "data convert {chair} --to ply", ("",)),
    Row("data convert --output", "data convert {chair} --to npz", ("",)),
    Row("evaluate labels --output", "evaluate labels {labeled} {labeled}", TABLES, also="--page"),
    Row("evaluate labels --page", "evaluate labels {labeled} {labeled}", (".html",), also="--output"),
    Row(
        "evaluate classifier --output", "evaluate classifier {classifier} {classes} --split train", (*TABLES, ".html")
    ),
    Row("compare --output", "compare {first_run} {second_run}", (*TABLES, ".html")),
    Row(
        "evaluate classifier --report",
        "evaluate classifier {classifier} {splits} --report-facts {facts}",
        (".json",),
        also="--output",
    ),
    Row("train --output", "train {classes}", ("",)),
)
if HAS_SURVEY:
    ROWS += (
        Row("inventory --output", "inventory {tile}", (".laz", ".html", "")),
        Row("inventory --table", "inventory {tile}", (".csv", ".gpkg"), also="--output"),
        Row("inventory --table", "inventory {mapped}", (".geojson",), also="--dtm"),
        Row("inventory --dtm", "inventory {tile}", (".tif",), also="--chm"),
        Row("inventory --chm", "inventory {tile}", (".tif",), also="--table"),
        Row("inventory --report", "inventory {tile}", (".html", ".json"), also="--table"),
        Row("data suggest --output", "data suggest {tile} --points 20", (".html", ".csv", ".las")),
        Row(
            "evaluate numbers --output",
            "evaluate numbers {numbered} {numbered} --numbers PredInstance",
            (*TABLES, ".html"),
        ),
    )
# Outputs that are held by tests of their own, and why they are not in the table.
ELSEWHERE = {
    "convert --output": "a conversion: tests/faults/test_files.py and tests/conversions/test_saving.py",
    "export --output": "tracing takes half a minute: tests/export/test_programs.py",
    "space --output": "of a repository on the hub: tests/hub/test_spaces.py",
    "evaluate minigpt3d --output-dir": "answers and verdicts: tests/faults/test_files.py",
}


def commands(group: typer.Typer = app, path: str = "") -> Iterator[tuple[str, Callable]]:
    for info in group.registered_commands:
        assert info.callback is not None
        yield f"{path}{info.name or info.callback.__name__.replace('_', '-')}", info.callback
    for info in group.registered_groups:
        assert info.typer_instance is not None
        yield from commands(info.typer_instance, f"{path}{info.name} ")


def test_every_path_of_a_command_is_an_input_or_has_a_row():
    written = set()
    for name, function in commands():
        hints = get_type_hints(function, include_extras=True)
        paths = {parameter for parameter in inspect.signature(function).parameters if "Path" in str(hints[parameter])}
        outputs = output_options(function)
        assert paths == set(outputs) | INPUTS.get(name, set()), f"{name}: is written, but not made by output_option?"
        written |= {f"{name} {option}" for option in outputs.values()}
    assert written == {row.option for row in ROWS} | set(ELSEWHERE)


@pytest.fixture(scope="module")
def inputs(models, tmp_path_factory) -> dict[str, str]:
    """Paths of the words in braces."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    points = generator.random((300, 3))
    labels = generator.integers(0, 3, 300)
    write_point_cloud(folder / "cloud.ply", PointCloudData(points.astype(np.float32)))
    (folder / "labeled").mkdir()
    write_point_cloud(folder / "labeled" / "a.ply", PointCloudData(points.astype(np.float32), labels=labels))
    rows = "\n".join(f"{x} {y} {z} {number}" for (x, y, z), number in zip(points, labels, strict=True))
    (folder / "numbered.txt").write_text(f"x y z PredInstance\n{rows}\n")
    for name in ("bottle", "chair", "lamp"):
        (folder / "classes" / name).mkdir(parents=True)
        for number in range(4):
            cloud = generator.normal(size=(80, 3)) * ((0.1, 0.1, 2) if name == "lamp" else (1, 1, 1))
            np.save(folder / "classes" / name / f"{number}.npy", cloud)
    for split in ("train", "test"):
        shutil.copytree(folder / "classes", folder / "splits" / split)
    (folder / "scans").mkdir()
    for name in ("chair.ply", "chair.obj", "lamp.stl", "bottle.obj", "desk.obj"):
        shutil.copy(FILES / name, folder / "scans" / name)
    Image.fromarray(np.full((6, 8), 1500, np.uint16)).save(folder / "depth.png")
    (folder / "camera.json").write_text('{"width": 8, "height": 6, "intrinsic_matrix": [5, 0, 0, 0, 5, 0, 4, 3, 1]}')
    assert run("data", "example", "new.las", "--output", folder).code == 0
    mapped = laspy.read(folder / "new.las")
    mapped.header.vlrs.append(WktCoordinateSystemVlr(CRS.from_epsg(3857).to_wkt()))
    mapped.header.global_encoding.wkt = True
    mapped.write(folder / "mapped.las")
    named = {"classifier", "zero-shot", "parts", "detector", "autoencoder"}
    return {name: models(name) for name in named} | {
        "chair": str(FILES / "chair.ply"),
        "cloud": str(folder / "cloud.ply"),
        "tile": str(folder / "new.las"),
        "mapped": str(folder / "mapped.las"),
        "scans": str(folder / "scans"),
        "classes": str(folder / "classes"),
        "splits": str(folder / "splits"),
        "labeled": str(folder / "labeled"),
        "numbered": str(folder / "numbered.txt"),
        "first_run": str(write_evaluation(folder / "first.json", ["ball", "cone"])),
        "second_run": str(write_evaluation(folder / "second.json", ["ball", "ball"])),
        "depth": str(folder / "depth.png"),
        "facts": '{"dataset":"shapes","encoder":"mine","seed":0,"selected_on_test":false}',
        "camera": str(folder / "camera.json"),
    }


def content(place: Path) -> dict[str, bytes]:
    """Files of an output by their names, without what differs from run to run."""
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {os.fsdecode(os.fsencode(file.name)): file.read_bytes() for file in files}


def left_over(folder: Path) -> list[str]:
    """Files that are not whole, which nothing may leave."""
    return [path.name for path in folder.rglob(".*") if ".tmp" in path.name]


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def read_only(tmp_path) -> Iterator[Path]:
    """A folder of a file system that is read-only, which holds for the superuser, too."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True).returncode:
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("no folder can be made read-only here")
        yield folder
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


CASES = [
    pytest.param(row, ending, id=f"{row.words} {row.option.split()[-1]} {ending}")
    for row in ROWS
    for ending in row.endings
]


@pytest.mark.parametrize(("row", "ending"), CASES)
def test_an_output_is_whole_or_an_error_that_names_it(row, ending, inputs, tmp_path, read_only):
    words = [word.format(**inputs) for word in row.words.split()]
    option = row.option.split()[-1]

    def write(output: Path | str, *further: object):
        torch.manual_seed(0)
        return run(*words, option, output, *further)

    def refused(result, output: Path | str, *reasons: str) -> None:
        assert result.code in (1, 2), result
        shown = result.err.replace("\\udcff", "\udcff")
        assert Path(output).name in shown and ".tmp" not in result.err, result
        assert not reasons or any(reason in result.err for reason in reasons), result

    # Before the work: a read-only folder, a folder that is a file, a file's name that is too long
    (tmp_path / "file").touch()
    for output, reason in (
        (read_only / f"out{ending}", "cannot be written (Read-only"),
        (tmp_path / "file" / f"out{ending}", "cannot be written (Not a directory"),
        (tmp_path / f"{'x' * 260}{ending}", "cannot be written (File name too long"),
    ):
        refused(write(output), output, reason, reason.replace("Read-only file system", "Permission denied"))
    # One path for two outputs
    if row.also:
        refused(write(tmp_path / f"one{ending}", row.also, tmp_path / f"one{ending}"), f"one{ending}", "both")
    # The first file of the command that is read and has this ending
    source = next((word for word in words if ending and word.endswith(ending) and os.path.isfile(word)), None)
    if source is not None:
        before = Path(source).read_bytes()
        refused(write(source), source, "is an input file", "is the input file")
        assert Path(source).read_bytes() == before

    # Long names, and names that are no UTF-8
    for name in ("測" * ((250 - len(ending)) // 3), os.fsdecode(b"caf\xff"), "plain"):
        done = write(tmp_path / f"{name}{ending}")
        assert done.code == 0, done
        assert content(tmp_path / f"{name}{ending}")
    whole = tmp_path / f"plain{ending}"
    before = content(whole)

    # A limit, where nothing is and where a good file is
    for output in (tmp_path / f"limited{ending}", whole):
        with limited(150):
            done = write(output)
        if done.code:
            assert output.name in done.err and ".tmp" not in done.err, done
        elif not row.is_new:
            assert content(output), done
    if ending or row.words.startswith("train"):
        assert content(whole) == before
    assert left_over(tmp_path) == []

    # A link is replaced, or refused as rows of another run, and what it leads to stays.
    if ending:
        (tmp_path / f"link{ending}").symlink_to(whole)
        done = write(tmp_path / f"link{ending}")
        assert f"link{ending} exists" in done.err if done.code else not (tmp_path / f"link{ending}").is_symlink(), done
        assert content(whole) == before


@pytest.mark.parametrize(("row", "ending"), CASES)
def test_a_name_that_is_no_utf8_ends_no_command(row, ending, inputs, tmp_path):
    words = []
    for word in row.words.split():
        path = Path(word.format(**inputs))
        if word in ("{chair}", "{cloud}", "{tile}", "{mapped}", "{numbered}", "{depth}"):
            words.append(tmp_path / os.fsdecode(b"caf\xff" + path.suffix.encode()))
            shutil.copyfile(path, words[-1])
        elif word in ("{scans}", "{classes}", "{splits}", "{labeled}"):
            words.append(tmp_path / os.fsdecode(b"caf\xff"))
            shutil.copytree(path, words[-1], dirs_exist_ok=True)
            for file in sorted(words[-1].rglob("*.*")):
                file.rename(file.with_name(os.fsdecode(b"\xe9") + file.name))
        else:
            words.append(word.format(**inputs))
    done = run(*words, row.option.split()[-1], tmp_path / f"out{ending}")
    assert done.code == 0, done
    for name, data in content(tmp_path / f"out{ending}").items():
        if name.endswith((".csv", ".json", ".jsonl", ".html", ".md")):
            data.decode("utf-8")
