"""What all commands share: names of models, JSON of options, errors and exit codes, messages about progress."""

import pytest
import typer
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.cli.command_line import CommandLine
from hf_any3d.hub.models import find_model
from tests.cli.conftest import run
from tests.errors import raises


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ValueError("a\nb"), 1, "error: a b\n"),
        (FileNotFoundError("a.ply"), 1, "error: a.ply\n"),
        (ImportError("needs x"), 1, "error: needs x\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (--debug prints the traceback)\n"),
        (typer.Exit(7), 7, ""),
        (typer.Abort(), 1, ""),
        (typer.BadParameter("wrong."), 2, "error: invalid value: wrong (hf-any3d fail --help)\n"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(error, code, printed):
    line = typer.Typer(cls=CommandLine, pretty_exceptions_enable=False)

    @line.command()
    def fail():
        raise error

    line.callback()(lambda: None)
    result = CliRunner().invoke(line, ["fail"], prog_name="hf-any3d")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", printed)


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


def test_a_program_that_calls_a_command_gets_its_errors_and_its_exit_code(tmp_path, capsys):
    command = typer.main.get_command(app)
    with pytest.raises(FileNotFoundError, match="^typo: no such directory, and not looked up on the Hub"):
        command.main(["info", "typo", "--debug"], standalone_mode=False)
    (tmp_path / "bad.ply").write_text("ply\n")
    assert command.main(["data", "check", str(tmp_path / "bad.ply")], standalone_mode=False) == 2
    assert command.main(["--version"], standalone_mode=False) is None
    with pytest.raises(SystemExit) as end:
        command.main(["data", "check", str(tmp_path / "bad.ply")])
    assert end.value.code == 2 and capsys.readouterr().err.count("1 of 1 files could not be used") == 2


def test_without_a_command_the_help_is_printed_and_a_group_asks_for_one():
    alone, asked = run(), run("--help")
    assert alone.code == asked.code == 0 and alone.out == asked.out and "predict" in alone.out
    for group in ("data", "evaluate"):
        code, out, err = run(group)
        assert code == 2 and err == f"error: missing command (hf-any3d {group} --help)\n" and "Commands" in out
    assert "[default" not in run("space", "--help").out, "the text of the option names it"
