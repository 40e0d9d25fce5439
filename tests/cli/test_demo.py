"""Arguments that the command refuses before it loads a model; tests/demo tests the page."""

import socket
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import hf_any3d
from hf_any3d.cli import app


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(*arguments):
    result = CliRunner().invoke(app, ["demo", "gone/model", *arguments])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use_is_refused_before_the_model_is_loaded(taken):
    assert f"--host 127.0.0.1 --port {taken}: " in refused("--port", str(taken))


def test_without_a_model_the_one_of_the_package_is_opened(monkeypatch):
    asked = []
    monkeypatch.setattr("hf_any3d.registration.task_of", lambda model: asked.append(model) or 1 / 0)
    assert CliRunner().invoke(app, ["demo", "--port", "7861"]).exit_code == 1
    assert asked == [hf_any3d.pipelines.default_model()]


def test_a_folder_without_shapes_is_refused_before_the_model_is_loaded(tmp_path):
    assert "no point cloud in this folder" in refused("--examples", str(tmp_path))


@pytest.mark.parametrize("task", ["point-cloud-classification", "point-cloud-text-to-text"])
def test_visitors_do_not_see_where_a_model_lies(task, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    (tmp_path / "chairs").mkdir()
    shapes, named = SimpleNamespace(names=[]), []
    monkeypatch.setattr("hf_any3d.demo.task_pages.TaskPage", lambda name, *_: named.append(name))
    monkeypatch.setattr("hf_any3d.demo.page.DemoPage", lambda name, *_: named.append(name))
    monkeypatch.setattr("hf_any3d.demo.task_pages.TaskAnswers", lambda *_: None)
    page = import_module("hf_any3d.cli.demo")._page
    for model in (str(tmp_path / "chairs"), f"{tmp_path}/chairs/", "me/chairs"):
        page(task, model, shapes, None, None, 400)
    assert named == ["chairs", "chairs", "me/chairs"]


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'hf-any3d[demo]'" in refused()
