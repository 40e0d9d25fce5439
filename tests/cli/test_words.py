"""What `convert`, `check-published`, `chat` and `show` make of their options and results, without models."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from tests.cli.conftest import FILES, run
from tests.errors import raises

convert, checks, chat, data, reconstruct = (
    import_module(f"hf_any3d.cli.{name}") for name in ("convert", "check_published", "chat", "data", "reconstruct")
)


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        ({"output": "out"}, ["out: "]),
        (
            {"output": "out", "model": "ACT", "trained_parameters": 1000, "parameters": 20_000, "bytes": 1_234_567}
            | {"encoder": "me/e", "teacher": None, "license": "CC-BY-NC-4.0"},
            [
                "out: ACT, 1,000 trained parameters, 20,000 parameters, 1.2 MB, encoder me/e",
                "license of the weights: CC-BY-NC-4.0, not for commercial use",
            ],
        ),
        (
            {"output": "out", "stages": {"a.pt": "stage I"}, "fresh": ["head", "norm"], "named": {"text_tower": "dir"}}
            | {"left_out": ["a", "b"], "parameters": {"bridge": 1000, "encoder": 5}, "license": "x"},
            [
                "a.pt: stage I",
                "no file has head, norm; they are initialized as training does",
                "text tower: in dir, which must stay there",
                "left out, no part of the encoder: a, b",
                "out/bridge: 1,000 parameters",
                "out/encoder: 5 parameters",
            ],
        ),
    ],
)
def test_what_a_conversion_found_is_told_in_lines(facts, lines):
    assert list(convert._report(facts)) == lines


def test_options_of_files_are_refused_for_published_checkpoints():
    with raises(ValueError, naming="--num-groups"):
        convert._convert_published("me/x", None, {"stage": 2, "num_groups": 4, "size": "base"})


def test_a_published_checkpoint_is_copied_where_the_option_says(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "config.json").write_text("{}")
    asked = []
    monkeypatch.setattr(
        "hf_any3d.published.published_directory",
        lambda name, **given: asked.append((name, given)) or tmp_path / "cache",
    )
    convert._convert_published("me/x", None, {"size": "base", "revision": "v1"})
    convert._convert_published("me/x", tmp_path / "out", {})
    assert asked == [("me/x", {"size": "base", "revision": "v1"}), ("me/x", {})]
    assert (tmp_path / "out" / "config.json").is_file()
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: me/x\n{tmp_path / 'out'}: me/x\n"


def test_names_of_repositories_stand_for_all_their_sizes():
    known = ["a/x:base", "a/x:small", "a/y", "a/xx"]
    assert checks._chosen(["a/y", "a/x", "a/x:small"], known) == ["a/y", "a/x:base", "a/x:small"]
    with pytest.raises(ValueError, match="a/z: not a published checkpoint; expected one of a/x:base, "):
        checks._chosen(["a/z"], known)


@pytest.mark.parametrize(
    ("passed", "words", "code"),
    [
        ({"a": True, "b": True}, (), 0),
        ({"a": True, "b": False}, (), 1),
        ({"a": True, "b": None}, (), 2),
        ({"a": False, "b": None}, (), 1),
        ({"a": True, "b": True}, ("--again", "--clouds", 20), 0),
    ],
)
def test_checks_are_recorded_and_their_end_says_what_failed(passed, words, code, tmp_path, monkeypatch):
    asked = []

    def check(name, **given):
        asked.append((name, given))
        if passed[name] is None:
            raise OSError("no network")
        check = {"name": "tensors", "passed": passed[name], "seen": "all"}
        unseen = {"name": "parts", "passed": None, "seen": "none"}
        return {
            "passed": passed[name],
            "date": "2026",
            "seconds": {"open": 1.6, "judge": 2.4},
            "checks": [check, unseen],
        }

    checked = "hf_any3d.evaluation.published_checks"
    monkeypatch.setattr(f"{checked}.published_names", lambda: ["a", "b"])
    monkeypatch.setattr(f"{checked}.check_published", check)
    output = tmp_path / "runs.json"
    first = run("check-published", "--output", output, *words)
    assert first.code == code
    given = {"clouds": 20 if words else 104}
    assert asked == [(name, given) for name in passed]
    assert first.out.startswith(f"{'a':<52} {'passed' if passed['a'] else 'FAILED'}   2 s to open, 2 s to judge\n")
    assert f"  {'ok' if passed['a'] else 'no'}  tensors: all\n  --  parts: none\n" in first.out
    good, bad = (sum(value is kind for value in passed.values()) for kind in (True, False))
    unopened = len(passed) - good - bad
    assert f"{output}: {good} passed, {bad} failed, {unopened} not opened" in first.err
    again = run("check-published", "--output", output, "--json", *words)
    known = [name for name, value in passed.items() if value is not None]
    assert again.code == code and [row["name"] for row in json.loads(again.out)] == known
    assert len(asked) == len(passed) * 2 if words else len(asked) == len(passed) + unopened, "known ones are kept"
    output.write_text('{"runs": []}')
    assert "has no records of this command" in run("check-published", "--output", output).err


SAMPLED = {"max_new_tokens": 200, "repetition_penalty": 1.05, "do_sample": True}
SAMPLED |= {"temperature": 0.2, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize(
    ("words", "generation"),
    [
        (
            (),
            {
                "max_new_tokens": 200,
                "repetition_penalty": 1.05,
                "do_sample": True,
                "temperature": 0.2,
                "top_p": 0.9,
                "top_k": 50,
            },
        ),
        (
            ("--temperature", "0", "--max-new-tokens", "5"),
            {"max_new_tokens": 5, "repetition_penalty": 1.05, "do_sample": False},
        ),
        (
            ("--temperature", "1", "--top-p", "0.5", "--repetition-penalty", "1.5"),
            {
                "max_new_tokens": 200,
                "repetition_penalty": 1.5,
                "do_sample": True,
                "temperature": 1.0,
                "top_p": 0.5,
                "top_k": 50,
            },
        ),
    ],
)
def test_options_of_a_chat_are_those_of_its_generation(words, generation, monkeypatch):
    asked, said = [], []
    session = SimpleNamespace(restart=lambda *given: said.append(("restart", *given)))
    monkeypatch.setattr(chat, "_open", lambda *given: asked.append(given) or session)
    monkeypatch.setattr(chat, "_answer", lambda session, model, line: said.append(line))
    lines = f"  Hi there \n\n/restart\n/open  {FILES / 'lamp.stl'} \n/open gone\n/x\n/quit\nno\n"
    chair = str(FILES / "chair.ply")
    result = CliRunner().invoke(
        app, ["chat", "m", chair, "--template", "demo", "--device", "cpu", *words], input=lines
    )
    assert result.exit_code == 0 and asked == [("m", Path(chair), "cpu", "demo", generation)]
    assert said == ["Hi there", ("restart",), ("restart", str(FILES / "lamp.stl"))]
    assert [line.split(";")[0] for line in result.stderr.splitlines()] == [
        "error: gone: no such file",
        "error: no command /x",
    ]


def test_a_command_shows_clouds_spread_over_its_files(tmp_path, monkeypatch):
    for number in range(5):
        points = np.random.default_rng(number).normal(size=(4, 3))
        labels = np.arange(4) if number < 4 else None
        write_point_cloud(tmp_path / f"{number}.ply", PointCloudData(points, labels=labels))
    written, opened = [], []
    monkeypatch.setattr(
        "hf_any3d.visualization.show.write_views", lambda path, views, **given: written.append((path, views, given))
    )
    monkeypatch.setattr(data.webbrowser, "open", opened.append)
    files = [tmp_path / f"{number}.ply" for number in range(5)]
    output = tmp_path / "a.html"
    assert run("show", *files, "--output", output, "--most", 3, "--columns", 2, "--open").out == f"{output}\n"
    assert run("show", *files[:2], "--output", output).code == 0
    (path, views, given), (_, others, labeled) = written
    assert path == output and [view.title for view in views] == ["0.ply", "2.ply", "4.ply"]
    title = ", ".join(map(str, files))
    assert given == {"title": title, "columns": 2, "names": [], "note": "3 clouds", "value_name": "intensity"}
    assert all(view.labels is None for view in views), "colored by label in all clouds or in none"
    assert labeled["names"] == ["0", "1", "2", "3"] and labeled["columns"] == 4 and others[0].labels is not None
    assert opened == [output.absolute().as_uri()]
    assert (
        run("show", files[0], "--output", tmp_path / "b.obj").code == 0
        and len(read_point_cloud(tmp_path / "b.obj")) == 4
    )
    assert "--serve: 2 files; expected one" in run("show", *files[:2], "--serve").err


def test_one_file_may_be_served(monkeypatch):
    served = []
    server = SimpleNamespace(get_port=lambda: 8081, sleep_forever=lambda: served.append("slept"))
    monkeypatch.setattr("hf_any3d.visualization.show.serve_scene", lambda cloud: served.append(len(cloud)) or server)
    result = run("show", FILES / "chair.ply", "--serve")
    assert result.out == "open http://127.0.0.1:8081 in a browser; Ctrl-C stops\n"
    assert served == [len(read_point_cloud(FILES / "chair.ply")), "slept"]


@pytest.mark.parametrize("suffix", ["", ".ply", ".png"])
def test_reconstructions_are_files_of_a_folder_one_file_or_a_picture(suffix, tmp_path, monkeypatch):
    clouds, pages = [], []
    made = "hf_any3d.visualization.reconstruction.write_reconstructions"
    monkeypatch.setattr("hf_any3d.data.files.write_point_cloud", lambda path, cloud: clouds.append((path, cloud)))
    monkeypatch.setattr("hf_any3d.pipelines.point_cloud_reconstruction.colored_by_patch", lambda result: result)
    monkeypatch.setattr(made, lambda path, answers, names, up_axis: pages.append((path, answers, names, up_axis)))
    output = tmp_path / f"out{suffix}"
    results = {"in/a.v1.ply": "A", "in/b.ply": "B"} if suffix != ".ply" else {"in/a.v1.ply": "A"}
    places = {"in/a.v1.ply": Path("in/a.v1"), "in/b.ply": Path("in/b")}
    reconstruct._write_reconstructions(output, suffix, results, places, "z")
    if suffix == ".png":
        assert clouds == [] and pages == [(output, ["A", "B"], ["a.v1.ply", "b.ply"], "z")]
    elif suffix:
        assert clouds == [(output, "A")] and pages == []
    else:
        assert clouds == [(output / "in" / "a.v1.ply", "A"), (output / "in" / "b.ply", "B")]
        assert pages == [
            (output / "in" / f"{name}.html", [letter], [name], "z") for name, letter in (("a.v1", "A"), ("b", "B"))
        ]
