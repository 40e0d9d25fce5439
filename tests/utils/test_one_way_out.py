"""All files are written through `hf_any3d.utils.atomic_files`, and every public writer ends whole or with an error."""

from __future__ import annotations

import ast
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_any3d import TextBank
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.hub.spaces import write_space
from hf_any3d.utils.atomic_files import write_bytes, write_json, write_text
from hf_any3d.visualization.show import write_feature_map, write_views
from hf_any3d.visualization.viewer import CloudView, write_clouds_page
from tests.errors import raises
from tests.extensions import HAS_SURVEY

ROOT = Path(__file__).resolve().parents[2]
# Names of context managers that make a file or folder whole, and of what they yield
_WHOLE = {
    "atomic_write",
    "folder_beside",
    "folder_inside",
    "new_directory",
    "replaced_when_complete",
    "replacing_model",
    "temporary_folder",
    "writing",
}
_WRITE = {
    "write_text", "write_bytes", "savefig", "to_parquet", "savez", "savez_compressed", "save_file", "copyfile", "copy",
    "copytree", "save_pretrained", "TemporaryDirectory", "mkdtemp", "NamedTemporaryFile",
}  # fmt: skip
# Functions that write without one, and why they may.
ALLOWED = {
    "hf_any3d/utils/atomic_files.py": "the way itself",
    "hf_any3d/many_files/runs.py add": "appends a row, and the error names the table",
    "hf_any3d/cli/command_line.py main": "to nowhere, where standard output is closed",
    "hf_any3d/cli/predict.py _write_features": "in memory",
    "hf_any3d/data/files/labels/npz.py _bytes": "in memory",
    "hf_any3d/training/trainer.py _save_arguments": "beside what Trainer saves, into the folder of `replacing_model`",
    "hf_any3d/export/language_model.py encode_prompt_embeds": "in memory",
    "survey/hf_any3d_survey/inventory/likeness.py save_likeness": "a file of the package, written by its maintainers",
    "hf_any3d/tasks/base.py save_pretrained": "as the models and processors of transformers",
    "hf_any3d/integration/peft_patches.py save_pretrained": "as PEFT",
    "hf_any3d/data/files/writer.py _write_npz": "into an open file",
    "conversions/saving.py save_weights": "into a directory of `new_directory`",
}


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_written(call: ast.Call) -> bool:
    name = _name(call)
    if name == "open":
        modes = [argument.value for argument in [*call.args[1:], *(word.value for word in call.keywords)]
                 if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]  # fmt: skip
        return any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
    if name == "save" and isinstance(call.func, ast.Attribute):
        return getattr(call.func.value, "id", getattr(call.func.value, "attr", "")) in ("np", "torch", "export")
    if name == "copy":
        return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "shutil"
    # Functions of these names are those of `atomic_files`, methods those of paths.
    return name in _WRITE and (not name.startswith("write_") or isinstance(call.func, ast.Attribute))


def _bypasses() -> Iterator[str]:
    for package in ("hf_any3d", "conversions", "survey/hf_any3d_survey"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(("hf_any3d/modeling/", "hf_any3d/conversions/")):
                continue
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(function, ast.FunctionDef):
                    continue
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(map(_is_written, calls)) and not any(_name(call) in _WHOLE for call in calls):
                    yield f"{place} {function.name}"


def test_nothing_is_written_around_the_one_way():
    found = {name for name in _bypasses() if name.split()[0] not in ALLOWED}
    assert found == {name for name in ALLOWED if " " in name and (ROOT / name.split()[0]).exists()}


POINTS = np.random.default_rng(0).random((200, 3)).astype(np.float32)
# Public functions that write a file -> how, and its name
WRITERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "write_bytes": (lambda path: write_bytes(path, bytes(500)), "a"),
    "write_text": (lambda path: write_text(path, "text" * 200), "a"),
    "write_json": (lambda path: write_json(path, ["text"] * 200), "a"),
    "write_point_cloud": (lambda path: write_point_cloud(path, PointCloudData(POINTS)), "a.npz"),
    "write_views": (lambda path: write_views(path, [CloudView(POINTS)]), "a.png"),
    "write_clouds_page": (lambda path: write_clouds_page(path, [POINTS]), "a.html"),
    "write_feature_map": (lambda path: write_feature_map(path, POINTS[:, :2], np.zeros(200, int), ["a"]), "a.html"),
    "write_space": (lambda path: write_space(path, "me/model", "a classifier", "Title"), "space"),
    "TextBank.save": (lambda path: TextBank({"a": torch.ones(300)}).save(path), "a.safetensors"),
}
if HAS_SURVEY:
    from hf_any3d_survey.inventory.rasters import Raster, open_mosaic
    from hf_any3d_survey.inventory.tables import write_table
    from hf_any3d_survey.inventory.things import Thing

    THING = Thing(1, "tree", 5, 1.0, 2.0, 3.0, 4.0, 5.0, 6, 0.5)

    def write_map(path: Path) -> None:
        with open_mosaic(path, (0, 0, 3, 200), 1) as mosaic:
            mosaic.add(Raster(POINTS[None], (0, 200), 1))

    WRITERS |= {
        "Mosaic.add": (write_map, "a.tif"),
        "write_table": (lambda path: write_table(path, [THING] * 20), "a.csv"),
    }
_BY_COMMAND = "tests/cli/test_written_files.py"
OTHERS = {
    "write_labels": "tests/data/files/labels",
    "write_some_points": _BY_COMMAND,
    "write_boxes": _BY_COMMAND,
    "write_labeled_ply": _BY_COMMAND,
    "write_label_cloud_points": _BY_COMMAND,
    "write_layout": "by write_text and write_bytes",
    "write_point_dataset": _BY_COMMAND,
    "write_comparison": _BY_COMMAND,
    "write_evaluation_page": _BY_COMMAND,
    "write_compared_numbers": _BY_COMMAND,
    "write_suggestions": _BY_COMMAND,
    "write_report": _BY_COMMAND,
    "write_reconstructions": _BY_COMMAND,
    "write_rows": _BY_COMMAND,
    "write_results": _BY_COMMAND,
    "write_gallery": _BY_COMMAND,
    "write_run_results": "by write_text",
    "write_card": "by write_text",
    "write_model_card": "by write_text",
    "write_run_card": "by write_text",
    "write_trainer_card": "by write_text",
}


def test_every_public_writer_is_known():
    found = set()
    files = [path for package in ("hf_any3d", "survey/hf_any3d_survey") for path in (ROOT / package).rglob("*.py")]
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("write_"):
                found.add(node.name)
    known = {name for name in WRITERS if "." not in name} | set(OTHERS)
    assert found == (known if HAS_SURVEY else known - {"write_compared_numbers", "write_suggestions", "write_report"})


@pytest.mark.parametrize("name", WRITERS)
def test_a_public_writer_is_whole_or_an_error_that_names_its_file(name, tmp_path):
    write, file = WRITERS[name]
    write(tmp_path / file)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder in (tmp_path, tmp_path / "new"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
        try:
            # A Space is refused where there is one, and an error names that of its files which has no room.
            with raises(OSError, naming=file):
                write(folder / file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    long = "測" * 75 + file[1:]
    write(tmp_path / long)
    assert (tmp_path / long).exists()
