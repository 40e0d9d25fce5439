"""Stored runs, and figures over seeds; every study can be started."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from studies import runs
from tests.errors import raises


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(runs.__file__).parent.glob("[!_]*.py")))
def test_every_study_can_be_imported(name):
    assert import_module(f"studies.{name}").__doc__


def test_stored_run_is_read_back_until_its_settings_change(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": 0.5}

    path = tmp_path / "runs" / "a-0.json"
    first = runs.kept_run(path, {"epochs": 1}, run)
    assert runs.kept_run(path, {"epochs": 1}, run) == first
    assert len(calls) == 1
    runs.kept_run(path, {"epochs": 2}, run)
    assert len(calls) == 2
    assert json.loads(path.read_text())["settings"] == {"epochs": 2}


def test_failed_run_stores_nothing(tmp_path):
    def run():
        raise RuntimeError("stopped")

    with raises(RuntimeError, naming="stopped"):
        runs.kept_run(tmp_path / "a-0.json", {}, run)
    assert not list(tmp_path.iterdir())


def test_folder_is_emptied_when_settings_changed(tmp_path):
    runs.reset_if_changed(tmp_path / "run", {"steps": 1})
    (tmp_path / "run" / "checkpoint").write_text("half")
    runs.reset_if_changed(tmp_path / "run", {"steps": 1})
    assert (tmp_path / "run" / "checkpoint").is_file()
    runs.reset_if_changed(tmp_path / "run", {"steps": 2})
    assert not (tmp_path / "run" / "checkpoint").exists()
