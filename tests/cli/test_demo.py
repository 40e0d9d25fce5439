"""Arguments that the command refuses before it loads a model; tests/demo tests the page."""

import socket

import pytest
from typer.testing import CliRunner

from hf_any3d.cli import app


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(*arguments):
    result = CliRunner().invoke(app, ["demo", "gone/model", *arguments])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.slow
def test_a_port_in_use_is_refused_before_the_model_is_loaded(taken):
    assert f"--host 127.0.0.1 --port {taken}: " in refused("--port", str(taken))


def test_a_folder_without_shapes_is_refused_before_the_model_is_loaded(tmp_path):
    assert "no point cloud in this folder" in refused("--examples", str(tmp_path))
