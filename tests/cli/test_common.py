"""What all commands share: names of models, JSON of options, errors and exit codes, messages about progress."""

import json
import os
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
import typer

from hf_any3d import cli
from hf_any3d.cli import app, common
from hf_any3d.cli.common import find_model, json_object, kind_of_model, one_line_errors, read_model_config
from tests.cli.conftest import FILES, run
from tests.errors import raises


@pytest.mark.parametrize(("text", "value"), [(None, {}), ('{"a": [1]}', {"a": [1]}), ("{}", {})])
def test_options_may_be_json_objects(text, value):
    assert json_object("--options", text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--options is '{': Expecting"),
        ("[1]", r"--options is '\[1\]'; expected a JSON object such as \{\"name\": 1\}"),
        ("null", "expected a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        json_object("--options", text)


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ValueError("a\nb"), 1, "error: a b\n"),
        (FileNotFoundError("a.ply"), 1, "error: a.ply\n"),
        (ImportError("needs x"), 1, "error: needs x\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (--debug prints the traceback)\n"),
        (typer.Exit(7), 7, ""),
        (typer.Abort(), 1, ""),
        (typer.BadParameter("wrong."), 2, "error: Invalid value: wrong (hf-any3d --help)\n"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(error, code, printed, capsys):
    with pytest.raises(typer.Exit) as end, one_line_errors():
        raise error
    assert end.value.exit_code == code and capsys.readouterr() == ("", printed)


def test_a_closed_pipe_ends_a_command_silently(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    with pytest.raises(typer.Exit) as end, one_line_errors():
        raise BrokenPipeError
    assert end.value.exit_code == 1 and sys.stdout.name == os.devnull and capsys.readouterr().err == ""
    sys.stdout.close()


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("yes", True), ("0", False), ("", False), (None, False)])
def test_a_variable_asks_for_tracebacks_too(value, shown, monkeypatch, capsys):
    monkeypatch.delenv("HF_ANY3D_TRACEBACK", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_ANY3D_TRACEBACK", value)
    with pytest.raises(typer.Exit), one_line_errors():
        raise ValueError("a")
    assert ("Traceback" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("before", [None, "0"])
def test_debug_holds_for_one_command_and_not_for_words_behind_two_dashes(before, monkeypatch):
    monkeypatch.delenv("HF_ANY3D_TRACEBACK", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_ANY3D_TRACEBACK", before)
    assert "Traceback" in run("info", "typo", "--debug").err
    assert os.environ.get("HF_ANY3D_TRACEBACK") == before
    behind = run("predict", FILES / "chair.ply", "--", "--debug")
    assert "Traceback" not in behind.err and "--debug: no such file" in behind.err


def test_notes_of_errors_are_printed_below_them(capsys):
    error = ValueError("wrong")
    error.add_note("a table\nof two lines")
    common.print_error(error)
    assert capsys.readouterr() == ("", "error: wrong\n  a table\n  of two lines\n")


@pytest.mark.parametrize(("is_terminal", "interval"), [(True, 0.1), (False, 10.0)])
def test_bars_appear_late_and_rarely_in_files(is_terminal, interval, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    made = []
    monkeypatch.setattr("tqdm.tqdm", lambda **settings: made.append(settings))
    common.progress(5, "file")
    common.progress(None, "file", show=False)
    assert made[0] == {
        "total": 5, "unit": "file", "delay": 2.0, "mininterval": interval, "disable": False, "leave": False,
    }  # fmt: skip
    assert made[1]["disable"] is True and made[1]["total"] is None


def waiting():
    """The threads that will tell what takes long."""
    timers = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    return [one for one in timers if one.function is common.print_note and not one.finished.is_set()]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_takes_long_is_told_to_those_who_watch(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(common, "PATIENCE", 0.0)
    with common.status("loading it"):
        for thread in waiting():
            assert thread.daemon
            thread.join(10)
    assert capsys.readouterr() == ("", "loading it …\n" if is_terminal else "")
    monkeypatch.setattr(common, "PATIENCE", 600.0)
    with common.status("loading it"):
        assert len(waiting()) == is_terminal
    assert capsys.readouterr().err == "", "what is quick is not told"


def test_a_model_is_a_directory_with_a_config_or_an_adapter(tmp_path, monkeypatch):
    for name, file in (("model", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        assert find_model(str(tmp_path / name)) == str(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model") == str(tmp_path / "model") and find_model("me/model") == "me/model"
    (tmp_path / "empty").mkdir()
    with raises(ValueError, naming="config.json"):
        find_model(str(tmp_path / "empty"))


@pytest.mark.parametrize(("text", "config"), [('{"model_type": "act3d"}', {"model_type": "act3d"}), ("[1]", {})])
def test_the_config_of_a_model_is_an_object(text, config, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert read_model_config(str(tmp_path)) == config


def test_an_adapter_alone_has_no_config_and_a_damaged_one_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert read_model_config(str(tmp_path)) == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path / 'config.json'}: not JSON"):
        read_model_config(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, None),
        ({"model_type": "bert"}, None),
        ({"model_type": "act3d", "architectures": []}, None),
        ({"model_type": "act3d", "architectures": None}, None),
        ({"model_type": "act3d", "architectures": ["ActForPointCloudClassification"]}, ("a classifier", "predict")),
    ],
)
def test_the_kind_of_a_model_is_that_of_its_class(config, kind):
    assert kind_of_model(config) == kind


@pytest.mark.parametrize(
    ("variables", "reachable", "offline"),
    [
        ({}, True, None),
        ({}, False, "1"),
        ({"https_proxy": "http://x"}, False, None),
        ({"ALL_PROXY": "x"}, False, None),
    ],
)
def test_without_a_network_the_cache_alone_is_used(variables, reachable, offline, monkeypatch):
    asked = []

    def resolve(host, port):
        asked.append(host)
        if not reachable:
            raise OSError("no such host")

    environment = {"HF_ENDPOINT": "https://hub.example:80/x", **variables}
    monkeypatch.setattr(common, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(common, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(common.socket, "getaddrinfo", resolve)
    common.skip_hub_if_offline()
    assert environment.get("HF_HUB_OFFLINE") == offline and asked == ([] if variables else ["hub.example"])
    monkeypatch.setattr(common, "sys", SimpleNamespace(modules={"huggingface_hub": None}))
    environment.pop("HF_HUB_OFFLINE", None)
    common.skip_hub_if_offline()
    assert "HF_HUB_OFFLINE" not in environment, "the library has read it already"


def test_a_chat_template_is_checked_when_the_model_is_opened(monkeypatch):
    asked = []
    pipe = SimpleNamespace(processor=SimpleNamespace(apply_chat_template=lambda *given: asked.append(given)))
    monkeypatch.setattr(common, "check_model", lambda *given: asked.append(given) or "found")
    monkeypatch.setattr(common, "open_pipeline", lambda *given: asked.append(given) or pipe)
    assert common.open_chat("me/model", "cpu", "demo") is pipe
    question = [{"role": "user", "content": ""}]
    assert asked == [("me/model", "chat"), ("point-cloud-text-to-text", "found", "cpu"), (question, "demo")]


def test_a_wrong_kind_of_a_revision_is_named(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(common, "find_model", lambda *given: seen.append(given) or str(tmp_path))
    config = {"model_type": "act3d", "architectures": ["ActForPointCloudClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert common.check_model("me/x", "predict", revision="v1") == str(tmp_path) and seen[0] == ("me/x", "v1")
    with pytest.raises(ValueError, match="this is a classifier: hf-any3d predict"):
        common.check_model("me/x", "chat", "segment")


def test_a_program_that_calls_a_command_gets_its_errors_and_its_exit_code(tmp_path, capsys):
    command = typer.main.get_command(app)
    with pytest.raises(FileNotFoundError, match="^no directory typo$"):
        command.main(["info", "typo", "--debug"], standalone_mode=False)
    (tmp_path / "bad.ply").write_text("ply\n")
    assert command.main(["data", "check", str(tmp_path / "bad.ply")], standalone_mode=False) == 2
    assert command.main(["--version"], standalone_mode=False) is None
    with pytest.raises(SystemExit) as end:
        command.main(["data", "check", str(tmp_path / "bad.ply")])
    assert end.value.code == 2 and capsys.readouterr().err.count("1 of 1 files could not be used") == 2


def test_the_program_has_short_warnings(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "app", lambda **given: called.append(given))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli.main()
    assert called == [{"prog_name": "hf-any3d"}]
    assert warnings.formatwarning(UserWarning("a\nb"), UserWarning, "file.py", 3, line="x") == "warning: a b\n"


def test_without_a_command_the_help_is_printed_and_a_group_asks_for_one():
    alone, asked = run(), run("--help")
    assert alone.code == asked.code == 0 and alone.out == asked.out and "predict" in alone.out
    for group in ("batch", "data", "evaluate"):
        code, out, err = run(group)
        assert code == 2 and err == f"error: Missing command (hf-any3d {group} --help)\n" and "Commands" in out
    assert "[default" not in run("space", "--help").out, "the text of the option names it"


def test_remarks_of_libraries_are_left_out_and_warnings_are_kept():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        common.load_libraries()
        warnings.warn("old", FutureWarning, stacklevel=1)
        warnings.warn("The PEFT config's `base_model_name_or_path` was renamed to x", UserWarning, stacklevel=1)
        warnings.warn("odd", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["odd"]


@pytest.mark.parametrize(
    ("config", "commands", "text"),
    [
        ({}, ("chat",), None),
        ({"model_type": "act3d", "architectures": ["ActForPointCloudClassification"]}, ("a", "predict"), None),
        ({"model_type": "act3d", "architectures": []}, ("predict",), None),
        ({"model_type": "bert"}, ("predict",), "model_type 'bert' is not of this package"),
    ],
)
def test_a_model_of_another_library_is_named(config, commands, text, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if text is None:
        assert common.check_model(str(tmp_path), *commands) == str(tmp_path)
        return
    with pytest.raises(ValueError, match=text):
        common.check_model(str(tmp_path), *commands)


def test_a_published_model_is_fetched_and_read_at_its_revision(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr(common, "is_published", lambda name: name == "me/x:base")
    monkeypatch.setattr(common, "find_published", asked.append)
    monkeypatch.setattr(common, "skip_hub_if_offline", lambda: asked.append("offline?"))
    monkeypatch.setattr("hf_any3d.published.opened_directory", lambda *given: asked.append(given) or tmp_path)
    assert read_model_config("me/x:base", "v1") == {"a": 1}
    assert asked == ["me/x:base", "offline?", ("me/x:base", "v1")]


def test_a_pipeline_is_opened_with_its_model_and_device(monkeypatch):
    monkeypatch.setattr("hf_any3d.many_files.work.open_pipeline", lambda *given: given)
    assert common.open_pipeline("task", "me/model", "cpu") == ("task", "me/model", "cpu")
