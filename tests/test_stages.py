"""The table of stages names what exists, and the night runs what has changed since it last passed."""

import re

import pytest

from tests import stages, versions
from tests.stages import NIGHT, ROOT, STAGES, Stage


def test_tests_and_paths_that_the_table_names_exist():
    # Of a missing file pytest runs nothing, and says only that no test ran.
    named = {f"tests/{test}" for test in versions.TESTS} | set(stages.SHARED)
    for stage in STAGES.values():
        named.update(stage.depends, (f"tests/{test}" for test in stage.tests))
    assert "tests/fuzz" in named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_no_test_is_in_two_stages():
    named = [test for stage in STAGES.values() for test in stage.tests]
    assert len(named) == len(set(named))


def test_every_file_of_tests_is_in_one_target():
    files = [file for target in ("test", *stages.TARGETS) for file in stages.files_of(target)]
    assert sorted(files) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


def test_the_workflow_of_the_night_has_all_stages():
    workflow = (ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8")
    assert re.search(r"stage: \[(.+)\]", workflow)[1].split(", ") == list(NIGHT)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a stage of one test, `a`, that depends on a file, `b`; running is true or false."""
    for name in ("a", "b", "other"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".ci").mkdir()
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "PASSED", tmp_path / ".ci" / "passed.json")
    monkeypatch.setattr(stages, "STAGES", {"one": Stage("tools", ("a",), ("b",))})
    monkeypatch.setattr(stages, "SHARED", ())
    stages.git("init", "--quiet")
    stages.git("config", "user.name", "me")
    stages.git("config", "user.email", "me@example.org")
    commit()
    return tmp_path


def commit():
    stages.git("add", "--all")
    stages.git("commit", "--quiet", "--message", "change", "--", ".")


def night(monkeypatch, capfd, succeeds: bool = True) -> str:
    """Return what the night says that CI has."""
    monkeypatch.setattr(stages, "run", lambda name, options: 0 if succeeds else 1)
    code = stages.nightly(["one"], only_changed=True)
    said = capfd.readouterr().out.splitlines()[-1]
    assert code == ("FAILED" in said)
    return said


def test_what_passed_is_left_out_until_one_of_its_paths_changes(checkout, monkeypatch, capfd):
    assert "FAILED" in night(monkeypatch, capfd, succeeds=False)
    assert " s" in night(monkeypatch, capfd)
    assert "unchanged" in night(monkeypatch, capfd)
    (checkout / "other").write_text("changed")
    commit()
    assert "unchanged" in night(monkeypatch, capfd)
    (checkout / "b").write_text("changed")
    assert "unchanged" not in night(monkeypatch, capfd)  # runs, but is no commit that others have
    commit()
    assert "unchanged" not in night(monkeypatch, capfd)
    assert "unchanged" in night(monkeypatch, capfd)


def test_what_never_passed_runs_also_with_uncommitted_changes(checkout, monkeypatch, capfd):
    (checkout / "b").write_text("changed")
    assert "unchanged" not in night(monkeypatch, capfd)


def test_what_changes_while_a_stage_runs_has_not_passed(checkout, monkeypatch, capfd):
    def changing(name, options):
        (checkout / "b").write_text("changed")
        commit()
        return 0

    monkeypatch.setattr(stages, "run", changing)
    assert stages.nightly(["one"], only_changed=True) == 0
    capfd.readouterr()
    assert "unchanged" not in night(monkeypatch, capfd)
