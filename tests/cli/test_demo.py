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
    monkeypatch.setattr("hf_any3d.integration.registration.task_of", lambda model: asked.append(model) or 1 / 0)
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


@pytest.fixture
def module():
    return import_module("hf_any3d.cli.demo")


def test_a_page_is_opened_where_the_options_say(module, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    opened, blocked = [], []
    page = SimpleNamespace(local_url="http://a", share_url="http://b", block_thread=lambda: blocked.append(True))

    def made(task, model, shapes, pipe, template, context):
        opened.append([task, model, len(shapes.names), pipe, template, context])
        return SimpleNamespace(open=lambda *address: opened[-1].extend(address) or page)

    monkeypatch.setattr(module, "_page", made)
    monkeypatch.setattr(module, "_open", lambda *given: given)
    monkeypatch.setattr(module, "_check_port", lambda *given: None)
    monkeypatch.setattr(module, "find_model", str)
    monkeypatch.setattr("hf_any3d.integration.registration.task_of", lambda model: f"point-cloud-{model}")
    plain = CliRunner().invoke(app, ["demo", "classification"])
    assert plain.exit_code == 0, plain.output
    (tmp_path / "a_8192.npy").touch()
    words = ["--host", "0.0.0.0", "--port", "7000", "--share", "--template", "demo", "--context", "300"]
    others = ["--device", "cpu", "--examples", str(tmp_path)]
    assert CliRunner().invoke(app, ["demo", "text-to-text", *words, *others]).exit_code == 0
    task, model, *rest = opened[0]
    assert (task, model) == ("point-cloud-classification", "classification")
    assert rest == [19, (task, model, None, None), None, 400, "127.0.0.1", 7860, False]
    task, model, *rest = opened[1]
    assert rest == [20, (task, model, "cpu", "demo"), "demo", 300, "0.0.0.0", 7000, True] and blocked == [True] * 2
    lines = plain.stdout.splitlines()
    assert lines[1] == "19 shapes to choose from; opening the page …"
    assert lines[2:] == [f"open http://{name} in a browser; Ctrl-C stops" for name in "ab"]
    refused = CliRunner().invoke(app, ["demo", "classification", "--template", "demo"])
    assert refused.exit_code == 1 and "--template demo: classification is not a chat model" in refused.stderr


@pytest.mark.parametrize("task", ["point-cloud-classification", "point-cloud-text-to-text"])
def test_what_was_loaded_is_counted(task, module, monkeypatch, capsys):
    weights = [SimpleNamespace(numel=lambda count=count: count) for count in (1200, 7)]
    model = SimpleNamespace(parameters=lambda: weights, dtype="float32")
    asked, pipe = [], SimpleNamespace(model=model, device="cpu")
    for name in ("open_chat", "open_pipeline"):
        monkeypatch.setattr(module, name, lambda *given, name=name: asked.append((name, *given)) or pipe)
    assert module._open(task, "me/model", "cpu", "demo") is pipe
    is_chat = task.endswith("text")
    assert asked == [
        ("open_chat", "me/model", "cpu", "demo") if is_chat else ("open_pipeline", task, "me/model", "cpu")
    ]
    assert capsys.readouterr().out == "loaded 1,207 weights on cpu (float32) in 0 s\n"


def test_conversations_have_the_template_and_the_context_of_the_options(module):
    pytest.importorskip("gradio")
    from hf_any3d.demo.conversation import Conversation

    page = module._page("point-cloud-text-to-text", "me/model", None, "pipe", "demo", 300)
    assert page.new_conversation.func is Conversation and page.new_conversation.args == ("pipe", "demo", 300)
    assert page.name == "me/model"


@pytest.mark.parametrize(("host", "family"), [("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET)])
def test_a_port_is_tried_in_the_family_of_its_address(host, family, module, monkeypatch):
    tried, closed = [], []
    server = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(module.socket, "create_server", lambda *given, **more: tried.append((given, more)) or server)
    module._check_port(host, 7)
    assert tried == [(((host, 7),), {"family": family})] and closed == [True]
    for error, reason in ((OSError(98, "Address in use"), "Address in use"), (OSError("odd"), "odd")):
        monkeypatch.setattr(
            module.socket, "create_server", lambda *given, error=error, **more: (_ for _ in ()).throw(error)
        )
        with pytest.raises(OSError, match=f"^--host {host} --port 7: {reason}; expected a free port$"):
            module._check_port(host, 7)


@pytest.mark.parametrize("task", ["point-cloud-classification", "point-cloud-text-to-text"])
def test_a_page_asks_the_pipeline_of_its_task(task, module, monkeypatch):
    pytest.importorskip("gradio")
    for name in ("demo.task_pages.TaskPage", "demo.task_pages.TaskAnswers", "demo.page.DemoPage"):
        monkeypatch.setattr(f"hf_any3d.{name}", lambda *given, name=name: (name.rpartition(".")[2], *given))
    made = module._page(task, "me/chairs", "shapes", "pipe", "demo", 300)
    if task.endswith("classification"):
        assert made == ("TaskPage", "me/chairs", "shapes", ("TaskAnswers", task, "pipe", "shapes"))
    else:
        assert made[:3] == ("DemoPage", "me/chairs", "shapes") and made[3].args == ("pipe", "demo", 300)
