"""`python -m tests.published`: records, exit codes, and runs that continue; the checks: tests/published."""

import json

import pytest

from tests.cli.conftest import run
from tests.published.__main__ import app


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

    checked = "tests.published.checks"
    monkeypatch.setattr("hf_any3d.published.published_names", lambda: ["a", "b"])
    monkeypatch.setattr(f"{checked}.check_published", check)
    output = tmp_path / "runs.json"
    first = run("check", "--output", output, *words, program=app)
    assert first.code == code
    given = {"clouds": 20 if words else 104}
    assert asked == [(name, given) for name in passed]
    assert first.out.startswith(f"{'a':<52} {'passed' if passed['a'] else 'FAILED'}   2 s to open, 2 s to judge\n")
    assert f"  {'ok' if passed['a'] else 'no'}  tensors: all\n  --  parts: none\n" in first.out
    good, bad = (sum(value is kind for value in passed.values()) for kind in (True, False))
    unopened = len(passed) - good - bad
    assert f"{output}: {good} passed, {bad} failed, {unopened} not opened" in first.err
    again = run("check", "--output", output, "--json", *words, program=app)
    known = [name for name, value in passed.items() if value is not None]
    assert again.code == code and [row["name"] for row in json.loads(again.out)] == known
    assert len(asked) == len(passed) * 2 if words else len(asked) == len(passed) + unopened, "known ones are kept"
    output.write_text('{"runs": []}')
    assert run("check", "--output", output, program=app).code == 1
