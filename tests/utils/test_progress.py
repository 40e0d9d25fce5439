"""Bars: for who watches alone, and never on the line of an answer."""

import io
import re
import sys
from pathlib import Path

import pytest

from hf_any3d.utils.messages import print_line
from hf_any3d.utils.progress import progress_bar

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    """What a terminal shows."""

    def isatty(self):
        return True


def test_all_bars_are_made_in_one_place():
    # Transformers has bars of its own, which its settings turn off.
    makes_bar = re.compile(r"(?<!logging\.)\btqdm\(|import .*\btqdm\b")
    makers = set()
    for folder in ("hf_any3d", "survey/hf_any3d_survey", "modeling", "conversions"):
        for file in (ROOT / folder).rglob("*.py"):
            if makes_bar.search(file.read_text(encoding="utf-8")):
                makers.add(file.relative_to(ROOT).as_posix())
    assert makers == {"hf_any3d/utils/progress.py"}


@pytest.mark.parametrize(("stream", "is_shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_appears_in_a_terminal_alone(stream, is_shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress_bar(range(3), unit="file", leave=False)) == [0, 1, 2]
    assert ("file/s" in sys.stderr.getvalue() or "0/3" in sys.stderr.getvalue()) is is_shown


@pytest.mark.parametrize("delay", [0, 60])
def test_an_answer_has_a_line_of_its_own(delay, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress_bar(total=2, unit="file", leave=False, delay=delay):
        print_line("chair.ply  chair  99 %")
    for line in terminal.getvalue().split("\n"):
        # What stands before the last return to the first column is overwritten.
        *_, shown = line.rstrip("\r").split("\r")
        assert shown.strip() in ("", "chair.ply  chair  99 %") or "chair" not in shown, line
    assert terminal.getvalue().count("0/2") == (2 if delay == 0 else 0)
