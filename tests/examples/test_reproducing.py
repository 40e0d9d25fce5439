"""Published tables: which programs run for a row, with what, and what stands beside the published figures."""

import json

import pytest
import yaml

from examples.repeat.published_tables import PROGRAM, PUBLISHED, published_tables
from examples.repeat.reproducing import reproduce
from tests.errors import raises

# Each program prints what it was called with, and writes a report; a step's accuracy is 0.9, and that of seed 2 0.92.
STUB = """
import json
from dataclasses import replace
from pathlib import Path
from tests.model_card.test_building import REPORT

def main(words):
    recipe = Path(words[0]).stem if words[0].endswith(".yaml") else "-"
    given = dict(zip(words[words[0].endswith(".yaml")::2], words[1 + words[0].endswith(".yaml")::2]))
    print(recipe, {name[2:]: value for name, value in given.items() if name not in ("--output_dir", "--voting")})
    metrics = {"test": {"accuracy": 0.9 + int(given["--seed"]) / 100, "chamfer": 0.5}}
    metrics |= {"test_voting": {"accuracy": 0.95}} if "--voting" in given else {}
    report = replace(REPORT, metrics=metrics, trained_parameters=2_000_000, peak_memory={"cuda": 3 * 10**9})
    report.save(given["--output_dir"] + "/metrics.json")
    return report
"""
ROWS = {
    "one": {"recipe": "one", "released": "one", "published": 91.9},
    "two": {"recipe": "two", "published": 87.0, "deviation": 1.5, "changes": {"model_config": {"width": 2}}},
}
STEPS = {
    "first": {"recipe": "one", "program": "run_first.py"},
    "last": {"recipe": "two", "start": "model_name_or_path"},
}


@pytest.fixture
def examples(tmp_path):
    """A folder with two recipes on the embedded shapes, and stubs of two programs."""
    recipes = tmp_path / "examples" / "recipes"
    (recipes / "released").mkdir(parents=True)
    for name in ("one", "two", "released/one"):
        (recipes / f"{name}.yaml").write_text(f"encoder_name_or_path: {tmp_path}\nvalidation_fraction: 0\n")
    for name in (PROGRAM, "run_first.py"):
        (recipes.parent / name).write_text(STUB)
    return recipes.parent


def table(examples, **changes):
    """Write a table to the folder and read it."""
    facts = {"paper": "paper", "data": "Shapes", "source": "Nobody", "rows": ROWS, **changes}
    text = yaml.safe_dump({"papers": {"paper": "Paper (arXiv 1)"}, "tables": {"table": facts}}, sort_keys=False)
    (examples / "recipes" / PUBLISHED).write_text(text)
    return published_tables(examples)["table"]


def test_rows_stand_beside_the_published_ones(examples, tmp_path, capsys):
    some, words = table(examples), ["--weight_decay", "0"]
    result = reproduce(some, examples, tmp_path / "out", seeds=[0, 2], voting=3, words=words)
    wide = {"model_config": '{"width": 2}'}
    assert capsys.readouterr().out.splitlines() == [
        f"{name} { {**changes, 'weight_decay': '0', 'seed': seed} }"
        for name, changes in (("one", {}), ("two", wide))
        for seed in "02"
    ]
    one, two = result["rows"]
    assert one["plain"] == {"mean": pytest.approx(91.0), "std": pytest.approx(1.4142136)}
    assert one["voted"] == {"mean": pytest.approx(95.0), "std": 0.0} and one["runs"] == two["runs"] == 2
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == result
    text = (tmp_path / "out" / "table.md").read_text().replace("\\", "")
    assert "| one | 91.9 | 91.00 ± 1.41 | 95.00 | -0.90 | 2 |" in text and "| two | 87.0 ± 1.5 |" in text
    assert "Paper (arXiv 1); Shapes." in text
    assert "Changed arguments: --weight_decay 0." in text
    again = reproduce(some, examples, tmp_path / "out", seeds=[0, 2], voting=3, words=words)
    assert again == result and capsys.readouterr().out == ""  # nothing is trained twice


def test_steps_start_from_the_one_before_and_are_shared(examples, tmp_path, capsys):
    columns = {
        "accuracy": {},
        "distance": {"metric": "chamfer", "step": "first", "factor": 1000},
        "parameters, M": {"metric": "trained_parameters", "factor": 1e-6},
        "GB": {"metric": "gpu_gigabytes"},
    }
    rows = {
        "plain": {"published": {"distance": 499.0}},
        "wide": {"changes": {"last": {"width": 2}}},
        "deep": {"changes": {"first": {"depth": 3}}},
    }
    some = table(examples, steps=STEPS, columns=columns, rows=rows)
    result = reproduce(some, examples, tmp_path / "out" / "table", voting=0)
    lines = capsys.readouterr().out.splitlines()
    ran = [(line.split()[0], "width" in line, "depth" in line) for line in lines]
    # The first step of the first two rows is one run.
    assert ran == [
        ("one", False, False),
        ("two", False, False),
        ("two", True, False),
        ("one", False, True),
        ("two", False, False),
    ]
    starts = [line.partition("model_name_or_path")[2] for line in lines if line.startswith("two")]
    assert starts[0].partition(",")[0] == starts[1].partition(",")[0] != starts[2].partition(",")[0]
    assert all(str(tmp_path / "out" / "steps" / "first-") in start for start in starts)
    figures = {row["column"]: row["plain"]["mean"] for row in result["rows"] if row["row"] == "plain"}
    assert figures == {"accuracy": 90.0, "distance": 500.0, "parameters, M": 2.0, "GB": 3.0}
    text = (tmp_path / "out" / "table" / "table.md").read_text()
    assert "| plain | distance | 499.0 | 500.00 | – | +1.00 | 1 |" in text
    assert "| plain | accuracy | – | 90.00 | – |  | 1 |" in text


def test_everything_missing_is_named_in_a_line_each_before_the_first_run(examples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (examples / "recipes" / "one.yaml").write_text("dataset_name: scanobjectnn\nmodel_name_or_path: outputs/start\n")
    (examples / "recipes" / "two.yaml").write_text("encoder_name_or_path: me/no-such-encoder\n")
    with raises(FileNotFoundError, naming="something is missing") as raised:
        reproduce(table(examples, needs="train it first"), examples, "out", data_dir=str(tmp_path))
    notes = raised.value.__notes__
    assert notes[0] == "one: outputs/start: no such directory; train it first"
    assert notes[1].startswith(f"one: {tmp_path}: missing h5_files") and "Agree to the terms of use" in notes[1]
    assert notes[2].startswith("two: me/no-such-encoder is not a directory")
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def published(**changes):
    row = {"row": "one", "column": "accuracy", "published": 90.0, "published_deviation": None, "runs": 0}
    return {**row, "plain": None, "voted": None, **changes}
