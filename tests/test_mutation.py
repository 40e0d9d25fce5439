"""The mutation run itself: it finds the changes it should, and tells noticed ones from survivors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import ROOT, draw, find_mutants
from tests.mutation.running import compile_by_content, summarize

SOURCE = '''"""Docstring."""
from dataclasses import dataclass

BORDER = 3


def shrink(value: int, factor: float = 0.5) -> float:
    """Docstring."""
    if value > BORDER and not isinstance(value, str):
        value -= 1
    elif value < 0:
        raise ValueError(f"value={value + 1}; expected at least {0}")
    print("ä", end="")
    return min(value * factor, 10, key=abs)
'''


@pytest.fixture
def mutants(tmp_path):
    folder = tmp_path / "modeling"
    folder.mkdir()
    (folder / "file.py").write_text(SOURCE, encoding="utf-8")
    return find_mutants(folder / "file.py", tmp_path)


def test_every_kind_of_change_is_found_once(mutants):
    assert [(m.line, m.before, m.text) for m in mutants] == [
        (4, "3", "4"),
        (7, "0.5", "1.5"),
        (
            9,
            "value > BORDER and not isinstance(value, str)",
            "(not (value > BORDER and (not isinstance(value, str))))",
        ),
        (9, "value > BORDER and not isinstance(value, str)", "(value > BORDER or not isinstance(value, str))"),
        (9, "value > BORDER", "(value >= BORDER)"),
        (9, "not isinstance(value, str)", "(isinstance(value, str))"),
        (10, "value -= 1", "pass"),
        (10, "1", "2"),
        (11, "value < 0", "(not value < 0)"),
        (11, "value < 0", "(value <= 0)"),
        (11, "0", "1"),
        (12, 'raise ValueError(f"value={value + 1}; expected at least {0}")', "pass"),
        (13, 'print("ä", end="")', "pass"),
        (13, 'print("ä", end="")', "(print('ä'))"),
        (14, "return min(value * factor, 10, key=abs)", "return None"),
        (14, "min(value * factor, 10, key=abs)", "(min(value * factor, 10))"),
        (14, "value * factor", "(value / factor)"),
        (14, "10", "20"),
    ]


TENSORS = """
def pool(tokens, centers):
    total = tokens.detach() - centers
    near = distances(tokens, centers)
    return {"tokens": total.transpose(1, 2).sum(dim=-1), "near": near.amax(dim=0)}
"""


@pytest.mark.parametrize(
    ("kind", "before", "text"),
    [
        ("drop detach", "tokens.detach()", "(tokens)"),
        ("swap operands", "tokens.detach() - centers", "(centers - tokens.detach())"),
        ("swap operands", "distances(tokens, centers)", "(distances(centers, tokens))"),
        ("drop transpose", "total.transpose(1, 2)", "(total)"),
        ("wrong axis", "-1", "-2"),
        ("wrong axis", "0", "1"),
        ("drop key 'near'", None, "({'tokens': total.transpose(1, 2).sum(dim=-1)})"),
    ],
)
def test_mistakes_with_tensors_and_keys_are_among_the_changes(tmp_path, kind, before, text):
    (tmp_path / "file.py").write_text(TENSORS, encoding="utf-8")
    found = [m for m in find_mutants(tmp_path / "file.py", tmp_path) if m.kind == kind and m.text == text]
    assert len(found) == 1 and before in (found[0].before, None)


def test_the_sample_is_the_same_for_a_seed():
    first, again, other = draw(300, 0), draw(300, 0), draw(300, 1)
    assert first == again and first != other and len(first) == len(other) == 300
    for mutant in first[:20]:
        assert mutant.before == " ".join(
            (ROOT / mutant.path).read_text(encoding="utf-8")[mutant.start : mutant.end].split()
        )


def test_a_recording_has_the_functions_that_each_test_enters(tmp_path):
    test = "tests/utils/test_messages.py::test_line_breaks_are_kept_on_request"
    # It starts another program, which is not recorded and must not find what was compiled for the recording.
    other = "tests/cli/test_errors.py::test_a_program_of_the_same_name_and_the_package_run"
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.recording", "-p", "no:cacheprovider", test, other]
    (rows := tmp_path / "rows").mkdir()
    environment = os.environ | {"HF_ANY3D_RECORDING": str(rows)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    row, of_other = [json.loads(line) for file in rows.iterdir() for line in file.read_text().splitlines()]
    assert [row["test"], of_other["test"]] == [test, other] and row["passed"] and of_other["passed"]
    assert any(name.startswith("hf_any3d/utils/messages.py::") for name in row["entered"])


def test_a_change_that_a_test_notices_is_killed_and_one_that_none_enters_is_untested(tmp_path):
    test = "tests/modeling/point_ops/test_cells.py"
    program = f"""
import json
from pathlib import Path
from tests.mutation.mutants import ROOT, find_mutants
from tests.mutation.running import try_mutants
mutants = find_mutants(ROOT / "modeling/point_ops/geometry.py")
returns = [m for m in mutants if m.kind == "return None"][:1]
other = [m for m in find_mutants(ROOT / "conversions/renaming.py") if m.kind == "return None"][:1]
name = f"modeling/point_ops/geometry.py::{{returns[0].function}}"
rows = [{{"test": "{test}", "seconds": 1.0, "passed": True, "entered": [name]}}]
for row in try_mutants(returns + other, rows, 0):
    print(json.dumps(row))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = map(json.loads, done.stdout.splitlines()[-2:])
    assert first["outcome"] == "killed" and first["test"].startswith(test)
    assert second["outcome"] == "untested"
    summary = summarize([first, second], {second["mutant"]: "a reason"})
    assert "1 noticed (50.0 %, 95 % interval 9.5 to 90.5 %)" in summary and "a reason" in summary
    assert "modeling/point_ops: 1 of 1" in summary and "conversions: 0 of 1" in summary
    assert Path(ROOT / "modeling/point_ops/geometry.py").read_text(encoding="utf-8").count("return None") == 0


def test_bytecode_hides_no_change_of_the_same_size_and_time(tmp_path):
    (file := tmp_path / "changed.py").write_text("value = 1\n")
    compile_by_content(tmp_path)
    before = file.stat()
    found = []
    for source in ("value = 1\n", "value = 2\n", "value = 3\n", "value = 1\n"):
        file.write_text(source)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        command = [sys.executable, "-c", "import changed; print(changed.value)"]
        found.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip())
    assert found == ["1", "2", "3", "1"]
    assert [file.name for file in (tmp_path / "__pycache__").iterdir()] == [
        f"changed.{sys.implementation.cache_tag}.pyc"
    ]
