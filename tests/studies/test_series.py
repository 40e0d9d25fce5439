"""Series of runs: few-shot folds, sweeps, and published tables."""

import json
import re
from dataclasses import replace

import pytest

from hf_any3d.training.arguments import read_settings
from studies.series import (
    PROGRAM,
    PUBLISHED,
    PublishedRow,
    PublishedTable,
    find_examples,
    published_tables,
    reproduce,
    run_folds,
    sweep,
)
from tests.model_card.test_building import REPORT


class Program:
    """Write a report whose accuracy is a tenth of the fold; can fail at one."""

    def __init__(self, fails_at: int | None = None):
        self.ran, self.fails_at = [], fails_at

    def __call__(self, words: list[str]):
        fold, folder = int(words[words.index("--fold") + 1]), words[words.index("--output_dir") + 1]
        if fold == self.fails_at:
            raise KeyboardInterrupt
        self.ran.append(fold)
        report = replace(REPORT, metrics={"test": {"accuracy": fold / 10}, "test_voting": {"accuracy": 0.5}})
        report.save(f"{folder}/metrics.json")
        return report


def fold_words(fold: int) -> list[str]:
    return ["--fold", str(fold)]


def test_mean_and_deviation_are_over_folds_for_each_split(tmp_path):
    result = run_folds(Program(), ["--lr", "1"], tmp_path, 4, fold_words)
    assert result["summary"]["test"]["accuracy"] == {"mean": pytest.approx(0.15), "std": pytest.approx(0.1290994)}
    assert result["summary"]["test_voting"]["accuracy"] == {"mean": 0.5, "std": 0.0}
    assert [fold["test"]["accuracy"] for fold in result["folds"]] == [0, 0.1, 0.2, 0.3]
    assert json.loads((tmp_path / "few_shot.json").read_text()) == result


def test_interrupted_series_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_folds(Program(fails_at=2), [], tmp_path, 4, fold_words)
    assert not (tmp_path / "few_shot.json").exists()
    later = Program()
    result = run_folds(later, [], tmp_path, 4, fold_words)
    assert later.ran == [2, 3] and len(result["folds"]) == 4


class Learner:
    """Write a report whose accuracy depends on learning rate and seed; can fail after some runs."""

    def __init__(self, most: int = 100):
        self.ran, self.most = [], most

    def __call__(self, words: list[str]):
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        given = dict(zip(words[::2], words[1::2], strict=True))
        self.ran.append((given["--learning_rate"], given["--seed"]))
        accuracy = 10 * float(given["--learning_rate"]) + int(given["--seed"]) / 100
        report = replace(REPORT, metrics={"test": {"accuracy": accuracy, "loss": 1.0}})
        report.save(f"{given['--output_dir']}/metrics.json")
        return report


VARY = {"learning_rate": ["0.01", "0.02"]}


def test_sweep_writes_mean_and_deviation_of_each_setting(tmp_path):
    learner = Learner()
    result = sweep(learner, ["--peft", "lora"], tmp_path, VARY, [0, 2])
    assert learner.ran == [("0.01", "0"), ("0.02", "0"), ("0.01", "2"), ("0.02", "2")]  # seeds outermost
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    summary = result["rows"][1]["summary"]["test"]["accuracy"]
    assert summary == {"mean": pytest.approx(0.21), "std": pytest.approx(0.0141421, rel=1e-4)}
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    trained = f"{REPORT.trained_parameters:,}"
    assert lines[2] == "| learning_rate | runs | trained parameters | test accuracy |"
    assert lines[4:6] == [f"| 0.01 | 2 | {trained} | 11.0 ± 1.4 |", f"| 0.02 | 2 | {trained} | 21.0 ± 1.4 |"]
    latex = (tmp_path / "sweep.tex").read_text()
    assert rf"0.02 & 2 & {trained} & 21.0 $\pm$ 1.4 \\" in latex and r"learning\_rate" in latex


def test_interrupted_sweep_keeps_its_table_and_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(Learner(most=3), [], tmp_path, VARY, [0, 1])
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert [list(row["runs"]) for row in stored["rows"]] == [["0", "1"], ["0"]]
    learner = Learner()
    result = sweep(learner, [], tmp_path, VARY, [0, 1])
    assert learner.ran == [("0.02", "1")]
    more = sweep(learner, [], tmp_path, {"learning_rate": ["0.01", "0.02", "0.03"]}, [0, 1])
    assert learner.ran[1:] == [("0.03", "0"), ("0.03", "1")] and more["rows"][:2] == result["rows"]


@pytest.mark.parametrize(
    ("vary", "seeds", "words", "message"),
    [
        ({"learning_rate": []}, [0], [], "learning_rate has the values none; expected distinct ones"),
        ({"learning_rate": ["1", "1"]}, [0], [], "learning_rate has the values 1, 1; expected distinct ones"),
        ({}, [3, 3], [], "seeds has the values 3, 3"),
        ({"seed": ["1"]}, [0], [], "--seed is set for each run of a sweep; expected it as --seeds"),
        ({}, [0], ["--output_dir", "a"], "--output_dir is set for each run of a sweep; expected it as --output-dir"),
        (VARY, [0], ["--learning_rate", "1"], "--learning_rate is set for each run of a sweep; expected it as --vary"),
    ],
)
def test_wrong_sweeps_are_refused_before_the_first_run(vary, seeds, words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sweep(Learner(most=0), words, tmp_path, vary, seeds)
    assert not list(tmp_path.iterdir())


ROWS = {
    "one": PublishedRow("one", 91.9, released="one"),
    "two": PublishedRow("two", 87.0, deviation=1.5),
}


@pytest.fixture
def examples(tmp_path):
    """A folder with recipes of two rows on the embedded shapes and a stub of the training program."""
    recipes = tmp_path / "examples" / "recipes"
    (recipes / "released").mkdir(parents=True)
    for name in ("one", "two", "released/one"):
        (recipes / f"{name}.yaml").write_text(f"encoder_name_or_path: {tmp_path}\nvalidation_fraction: 0\n")
    (recipes / PUBLISHED).write_text("{}")
    (recipes.parent / PROGRAM).write_text(
        "import json\n"
        "from dataclasses import replace\n"
        "from tests.model_card.test_building import REPORT\n"
        "def main(words):\n"
        "    given = dict(zip(words[1::2], words[2::2]))\n"
        "    print('ran', words[0].rpartition('/')[2], given['--seed'])\n"
        "    metrics = {'test': {'accuracy': 0.9 + int(given['--seed']) / 100}}\n"
        "    metrics |= {'test_voting': {'accuracy': 0.95}} if '--voting' in given else {}\n"
        "    replace(REPORT, metrics=metrics).save(given['--output_dir'] + '/metrics.json')\n"
    )
    return recipes.parent


def test_reproduced_rows_stand_beside_the_published_ones(examples, tmp_path, capsys):
    table = PublishedTable("table", "Data", "Paper (arXiv 1)", ROWS)
    result = reproduce(table, examples, tmp_path / "out", seeds=[0, 2], voting=3, words=["--weight_decay", "0"])
    assert capsys.readouterr().out.splitlines() == [f"ran {name}.yaml {seed}" for name in ROWS for seed in (0, 2)]
    one, two = result["rows"]
    assert one["plain"] == {"mean": pytest.approx(91.0), "std": pytest.approx(1.4142136)}
    assert one["voted"] == {"mean": pytest.approx(95.0), "std": 0.0} and one["runs"] == two["runs"] == 2
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == result
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| one | 91.9 | 91.00 ± 1.41 | 95.00 | -0.90 | 2 |" in text and "| two | 87.0 ± 1.5 |" in text
    assert "Paper (arXiv 1)" in text and "sound recipes, weights of the last epoch" in text
    assert "--weight\\_decay 0" in text or "--weight_decay 0" in text
    again = reproduce(table, examples, tmp_path / "out", seeds=[0, 2], voting=3, words=["--weight_decay", "0"])
    assert again == result and capsys.readouterr().out == ""  # nothing is trained twice


def test_everything_missing_is_named_before_the_first_training(examples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (examples / "recipes" / "one.yaml").write_text("dataset_name: scanobjectnn\nmodel_name_or_path: outputs/start\n")
    (examples / "recipes" / "two.yaml").write_text("encoder_name_or_path: me/no-such-encoder\n")
    rows = {**ROWS, "one": replace(ROWS["one"], needs="train it first")}
    with pytest.raises(FileNotFoundError) as raised:
        reproduce(PublishedTable("table", "Data", "Paper", rows), examples, "out", data_dir=str(tmp_path))
    message = str(raised.value)
    assert "one: no directory outputs/start; train it first" in message
    assert f"one: {tmp_path}: missing h5_files" in message and "Agree to the terms of use" in message
    assert "two: me/no-such-encoder is not a directory" in message
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_published_rows_have_recipes_whose_comments_state_the_same_figure():
    examples = find_examples()
    tables = published_tables(examples)
    assert sum(len(table.rows) for table in tables.values()) == 39
    for table in tables.values():
        for row in table.rows.values():
            text = (examples / "recipes" / f"{row.recipe}.yaml").read_text(encoding="utf-8")
            stated = re.findall(r"The authors report ([\d.]+) %", text)
            assert stated == [str(row.published)] or row.way is not None, row.recipe
            assert row.released is None or (examples / "recipes" / "released" / f"{row.released}.yaml").is_file()
            assert (examples / row.program).is_file()
            page = (examples.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
            assert str(row.published) in page and (row.deviation is None or f"± {row.deviation}" in page)
            settings = read_settings(examples / "recipes" / f"{row.recipe}.yaml")
            start = settings.get("model_name_or_path") or settings["encoder_name_or_path"]
            assert bool(row.needs) == start.startswith("outputs/"), row.recipe
