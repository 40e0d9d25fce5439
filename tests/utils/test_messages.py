"""Terminal output of untrusted text."""

import contextlib
import csv
import io
import json

import pytest
from safetensors import SafetensorError

from hf_any3d.utils.messages import (
    csv_text,
    error_lines,
    model_errors,
    one_line,
    percent,
    print_json,
    print_line,
    printable,
    shown_command,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("chair", "chair"),
        ("Stuhl – chaise longue, 椅子 🪑 کرسی‌ها", "Stuhl – chaise longue, 椅子 🪑 کرسی‌ها"),
        ("\x1b[2J\x1b]0;owned\x07", "\\u001b[2J\\u001b]0;owned\\u0007"),
        ("a\nerror: forged\rb\tc", "a\\u000aerror: forged\\u000db\\u0009c"),
        ("\x9b31m", "\\u009b31m"),
        ("exe\u202egnp", "exe\\u202egnp"),
        ("\ud800 alone\u2028", "\\ud800 alone\\u2028"),
        (3.5, "3.5"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_notes_of_an_error_are_wrapped_below_its_line():
    error = ValueError("no data\nhere")
    error.add_note("Get it from " + 20 * "https://example.org/data " + "\x1b[2J")
    error.add_note("folder/          layout a\nother/file.txt   layout b")
    first, *below = error_lines(error)
    assert first == "no data here" and below[-2:] == ["  folder/          layout a", "  other/file.txt   layout b"]
    assert len(below) > 5 and max(map(len, below)) <= 102 and below[-3].endswith("\\u001b[2J")
    assert error_lines(ValueError("alone")) == ["alone"]
    # Long words can be copied whole.
    error, path = ValueError("no file"), "a-long/" * 20 + "name"
    error.add_note(f"looked for {path} there")
    assert f"  {path}" in error_lines(error)


def test_line_breaks_are_kept_on_request():
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\u001b"


def test_multi_line_errors_become_one_line():
    assert one_line(ValueError("first\n  second\n\nerror: third\x1b[0m")) == "first second error: third\\u001b[0m"
    assert one_line(ZeroDivisionError()) == "ZeroDivisionError"


def test_json_is_valid_and_escaped(capsys):
    value = {"file": "\x1b[2J\x9b", "labels": ["a\nb", "\u202e", "椅子", "\ud800"]}
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert all(char == "\n" or char.isprintable() for char in out)


def test_unprintable_characters_do_not_end_a_program():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with contextlib.redirect_stdout(stream):
        print_line("chair 椅子")
    assert raw.getvalue() == b"chair \\u6905\\u5b50\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("size\nmismatch"), KeyError("x"), SafetensorError("short"), RecursionError()]
)
def test_any_loading_error_names_the_model(error):
    with pytest.raises(ValueError, match=f"me/model: this model cannot be opened .{type(error).__name__}: "):
        with model_errors("me/model"):
            raise error


@pytest.mark.parametrize("error", [ValueError("me/model is bad"), FileNotFoundError("gone"), ImportError("peft")])
def test_errors_that_commands_handle_are_unchanged(error):
    with pytest.raises(type(error)) as caught, model_errors("me/model"):
        raise error
    assert caught.value is error


def test_long_lists_are_cut():
    for text in (f"no kind of these: {'kind ' * 1000}", f"me/model: {'kind ' * 1000}"):
        with pytest.raises(ValueError, match="^me/model: ") as caught, model_errors("me/model"):
            raise ValueError(text)
        assert len(str(caught.value)) < 600 and str(caught.value).endswith("...")


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_only_the_whole_is_100_percent(decimals):
    for total in (1, 7, 270, 10**6):
        assert float(percent(total / total, decimals)) == 100 > float(percent((total - 1) / total, decimals))
    assert percent(0.123456, decimals) == f"{12.3456:.{decimals}f}"


def test_csv_holds_no_formulas_and_keeps_numbers():
    table = [
        ["file", "=SUM(A1)"],
        ["=cmd|' /C calc'!A0.ply", -0.5],
        ["+1", None],
        ["-x", 3],
        ["@a", "\t=1"],
        [" =1", "a=b"],
    ]
    text = csv_text(table)
    assert list(csv.reader(io.StringIO(text))) == [
        ["file", "'=SUM(A1)"],
        ["'=cmd|' /C calc'!A0.ply", "-0.5"],
        ["'+1", ""],
        ["'-x", "3"],
        ["'@a", "\\u0009=1"],
        ["' =1", "a=b"],
    ]


def listed(*reasons):
    """An error of transformers with the traceback of each class that it tried."""
    entry = "while loading with A, an error is thrown:\nTraceback (most recent call last):\n  File x\n{}\n\n"
    return ValueError("Could not load.\n\n" + "".join(entry.format(reason) for reason in reasons))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (listed("KeyError: a", "OSError: b"), "me/model: KeyError: a"),
        (listed("KeyError: a\nDuring\nx.y.OddException: c\n", "OSError: b"), "me/model: x.y.OddException: c"),
        (listed("ValueError: me/model: is bad"), "me/model: is bad"),
        (listed("ValueError: in me/model: is bad"), "in me/model: is bad"),
        (listed("no reason"), "me/model: Could not load. while loading with A, an error is thrown: Traceback"),
        (OSError("while loading with A: ValueError: b"), "while loading with A: ValueError: b"),
    ],
)
def test_the_last_reason_of_the_first_class_is_told(error, told):
    with pytest.raises((ValueError, OSError)) as caught, model_errors("me/model"):
        raise error
    assert str(caught.value).startswith(told) and (str(caught.value) == told) is ("no reason" not in str(error))
    assert caught.value is error or caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/data/me/scans/new.las", "new.las"),
        ("/data/me/scans/", "scans"),
        ("scans/new.las", "scans/new.las"),
        ("me/model", "me/model"),
        ("--report=/data/me/report.html", "--report=report.html"),
        ("--min-height=2", "--min-height=2"),
        ("/data/my scans/a b.las", "'a b.las'"),
    ],
)
def test_pages_show_nothing_of_the_folders_of_a_machine(word, shown):
    assert shown_command(["inventory", word]) == f"inventory {shown}"
