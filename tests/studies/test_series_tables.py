"""Tables of series, cell by cell, and with which arguments each run of a published table is started."""

import json
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_any3d.training import folds
from studies import series
from studies.series import (
    PublishedRow,
    PublishedTable,
    find_examples,
    load_program,
    published_tables,
    reproduce,
    run_once,
    summarize,
    write_published,
    write_sweep,
    write_tables,
)
from tests.errors import raises
from tests.model_card.test_building import REPORT


@pytest.mark.parametrize(
    ("metric", "mean", "std", "text"),
    [
        ("accuracy", 0.12345, 0.0, "12.3"),
        ("mean_class_accuracy", 0.12345, 0.0151, "12.3 ± 1.5"),
        ("mean_iou", 1.0, 0.0, "100.0"),
        ("instance_miou", 0.5, 0.001, "50.0 ± 0.1"),
        ("cross_entropy", 1.23456, 0.01234, "1.235 ± 0.012"),
        ("cross_entropy", 12345.6, 0.0, "1.235e+04"),
    ],
)
def test_shares_are_in_percent_and_other_figures_as_they_are(metric, mean, std, text):
    assert series._cell(metric, {"mean": mean, "std": std}) == text
    assert series._cell(metric, None) == "" and series._figure(None) == "–"


def test_published_figures_have_two_places():
    assert series._figure({"mean": 91.005, "std": 0.0}) == f"{91.005:.2f}"
    assert series._figure({"mean": 91.0, "std": 1.456}) == "91.00 ± 1.46"


def test_deviations_are_those_of_a_sample():
    runs = [{"test": {"accuracy": value, "loss": 1.0}} for value in (0.1, 0.2, 0.6)]
    found = summarize(runs)["test"]
    assert found["accuracy"] == {"mean": pytest.approx(0.3), "std": pytest.approx(0.07**0.5)}
    assert found["loss"] == {"mean": 1.0, "std": 0.0}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "plain"),
        ({"lr": "1e-3", "peft": "a+b"}, "lr=1e-3,peft=a+b"),
        ({"a": "x" * 78}, f"a={'x' * 78}"),
    ],
)
def test_settings_that_are_file_names_are_names_of_folders(settings, name):
    assert series._folder_name(settings) == name


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"a": '{"r": 4}'}, "a=_r_4_"),
        ({"a": "x" * 79}, f"a={'x' * 78}"),
        ({"a": "b/c"}, "a=b_c"),
    ],
)
def test_other_settings_end_in_a_checksum(settings, start):
    text = ",".join(f"{name}={value}" for name, value in settings.items())
    assert series._folder_name(settings) == f"{start}-{zlib.crc32(text.encode()):08x}"


def test_a_table_is_markdown_and_latex(tmp_path):
    found = write_tables(
        tmp_path / "t.1", "My <table>", ["a|b", "c_d", "e"], [["1 ± 2", "{x}", "5%"]], "A note\nof $5."
    )
    assert found == (tmp_path / "t.1.md", tmp_path / "t.1.tex")
    lines = found[0].read_text().splitlines()
    assert lines[0].startswith("# My ") and lines[1] == "" and lines[3] == "|---|---|---|" and lines[5] == ""
    assert lines[2] == "| a\\|b | c_d | e |" and lines[4] == "| 1 ± 2 | {x} | 5% |" and len(lines) == 7
    assert found[1].read_text().splitlines()[-6:] == [
        r"\toprule",
        r"a|b & c\_d & e \\",
        r"\midrule",
        r"1 $\pm$ 2 & \{x\} & 5\% \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"\begin{tabular}{lrr}" in found[1].read_text()
    assert "".join(map(series._LATEX.get, "\\~^&#$")) == (r"\textbackslash{}\textasciitilde{}\textasciicircum{}\&\#\$")


def figure(mean, std=0.0):
    return {"mean": mean, "std": std}


def test_a_sweep_lists_what_its_runs_measured_but_losses_and_training(tmp_path):
    first = {"train": {"accuracy": figure(1.0)}, "validation": {"accuracy": figure(0.5, 0.1), "loss": figure(2.0)}}
    second = {"validation": {"accuracy": figure(0.25)}, "test": {"mean_iou": figure(0.125), "chamfer": figure(0.02)}}
    result = {
        "arguments": ["--epochs", "3"],
        "vary": {"lr": ["1", "2", "3"], "peft": ["a"]},
        "seeds": [0, 5],
        "rows": [
            {
                "settings": {"lr": "1", "peft": "a"},
                "runs": {"0": {}, "5": {}},
                "summary": first,
                "trained_parameters": 1234,
            },
            {"settings": {"lr": "2", "peft": "a"}, "runs": {"0": {}}, "summary": second, "trained_parameters": 7},
            {"settings": {"lr": "3", "peft": "a"}, "runs": {}, "summary": {}},
        ],
    }
    write_sweep(result, tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    lines = (tmp_path / "sweep.md").read_text().replace("\\", "").splitlines()
    head = "| lr | peft | runs | trained parameters | validation accuracy | test mean_iou | test chamfer |"
    assert lines[0] == "# sweep" and lines[2] == head
    assert lines[4:7] == [
        "| 1 | a | 2 | 1,234 | 50.0 ± 10.0 |  |  |",
        "| 2 | a | 1 | 7 | 25.0 | 12.5 | 0.02 |",
        "| 3 | a | 0 |  |  |  |  |",
    ]
    assert lines[8].startswith("Mean ± standard deviation over the seeds 0, 5;")
    assert lines[8].endswith("Arguments of all runs: --epochs 3.")
    write_sweep(result | {"arguments": []}, tmp_path)
    assert "Arguments of all runs: none." in (tmp_path / "sweep.md").read_text()


def published(**changes):
    row = {"row": "one", "published": 90.0, "published_deviation": None, "runs": 0, "plain": None, "voted": None}
    return row | changes


def test_a_published_table_has_the_difference_from_the_paper(tmp_path):
    rows = [
        published(),
        published(row="two", published_deviation=1.5, runs=3, plain=figure(91.256, 0.5), voted=figure(92.0)),
        published(row="three", published=80.1, runs=1, plain=figure(80.1)),
        published(row="four", runs=1, plain=figure(89.0)),
    ]
    settings = {"recipes": "sound", "seeds": [0], "changes": ["--lr", "2"], "voting": 10}
    result = {"table": "t", "data": "Shapes", "source": "Paper", "settings": settings, "rows": rows}
    write_published(result, tmp_path)
    assert json.loads((tmp_path / "t.json").read_text()) == result
    lines = (tmp_path / "t.md").read_text().replace("\\", "").splitlines()
    assert lines[0] == "# t"
    assert lines[2] == "| row | published | here, plain | here, voted | difference of plain | runs |"
    assert lines[4:8] == [
        "| one | 90.0 | – | – |  | 0 |",
        "| two | 90.0 ± 1.5 | 91.26 ± 0.50 | 92.00 | +1.26 | 3 |",
        "| three | 80.1 | 80.10 | – | +0.00 | 1 |",
        "| four | 90.0 | 89.00 | – | -1.00 | 1 |",
    ]
    assert (
        "Percent on Shapes. Published: Paper;" in lines[9] and "Here: sound recipes, weights of the last" in lines[9]
    )
    assert "mean logits of 10 augmented copies. Changed arguments: --lr 2." in lines[9]
    write_published(result | {"settings": {**settings, "recipes": "as released", "changes": []}}, tmp_path)
    note = (tmp_path / "t.md").read_text().splitlines()[9]
    assert "as released recipes, weights of the epoch that is best on the test set" in note and "Changed" not in note


ROWS = {
    "one, 1%": PublishedRow("r1", 91.9, released="q1", deviation=0.5),
    "two": PublishedRow("r2", 87.0, metric="mean_iou", program="run_other.py"),
    "few": PublishedRow("r3", 80.0, way=5, shot=10),
}


@pytest.fixture
def started(monkeypatch):
    """Let nothing run; return what was checked, opened, started and written."""
    found = []
    monkeypatch.setattr(series, "_check_rows", lambda *given: found.append(("check", *given)))
    monkeypatch.setattr(series, "load_program", lambda *given: found.append(("load", *given)) or f"run {given[1]}")
    monkeypatch.setattr(
        series, "write_published", lambda result, root: found.append(("write", json.dumps(result), root))
    )

    def once(run, words, folder):
        found.append(("once", run, words, folder))
        own = {"accuracy": 0.5 + int(words[-1]) / 100, "mean_iou": 0.25}
        return SimpleNamespace(metrics={"test": own} | ({"test_voting": own} if "--voting" in words else {}))

    def folds(run, words, folder, count, fold_words):
        found.append(("folds", run, words, folder, [fold_words(number) for number in range(count)]))
        return {"folds": [{"test": {"accuracy": number / 10}} for number in range(count)]}

    monkeypatch.setattr(series, "run_once", once)
    monkeypatch.setattr(series, "run_folds", folds)
    return found


def test_runs_of_a_published_table_get_recipe_data_start_changes_votes_and_seed(started, tmp_path):
    table, out, words = PublishedTable("t", "Shapes", "Paper", ROWS), tmp_path / "out", ["--lr", "2"]
    settings = {"data_dir": "data", "seeds": [3, 5], "voting": 4, "start": "me/start", "words": words}
    result = reproduce(table, tmp_path, out, **settings)
    recipes = {name: str(tmp_path / "recipes" / f"{row.recipe}.yaml") for name, row in ROWS.items()}
    common = ["--data_dir", "data", "--model_name_or_path", "me/start", "--lr", "2"]
    assert started[0] == ("check", ROWS, recipes, common) and started[1][0] == "write"
    kinds = [kind for kind, *_ in started[2:]]
    assert kinds == [*["load", "once", "write", "once", "write"] * 2, "load", "folds", "write"]
    assert {one[2] for one in started if one[0] == "write"} == {out}
    programs = [one[1:] for one in started if one[0] == "load"]
    assert programs == [(tmp_path, series.PROGRAM), (tmp_path, "run_other.py"), (tmp_path, series.PROGRAM)]
    once = [one[1:] for one in started if one[0] == "once"]
    votes = ["--voting", "4"]
    assert once == [
        (f"run {program}", [recipes[name], *common, *own, "--seed", seed], out / folder / f"seed_{seed}")
        for name, program, own, folder in (
            ("one, 1%", series.PROGRAM, votes, "one_1_"),
            ("two", "run_other.py", [], "two"),
        )
        for seed in ("3", "5")
    ]
    (_, run, own, folder, fold_words) = next(one for one in started if one[0] == "folds")
    assert (run, own) == (f"run {series.PROGRAM}", [recipes["few"], *common, *votes, "--seed", "3"])
    assert folder == out / "few" and [json.loads(words[1]) for words in fold_words] == [
        {"way": 5, "shot": 10, "fold": fold} for fold in range(10)
    ]
    assert {words[0] for words in fold_words} == {"--dataset_options"}
    assert {name: result[name] for name in ("table", "data", "source", "settings")} == {
        **{"table": "t", "data": "Shapes", "source": "Paper"},
        "settings": {"recipes": "sound", "seeds": [3, 5], "changes": ["--lr", "2"], "voting": 4},
    }
    one, two, few = result["rows"]
    assert one == {
        **{"row": "one, 1%", "recipe": recipes["one, 1%"], "metric": "accuracy", "published": 91.9},
        **{"published_deviation": 0.5, "runs": 2},
        "plain": {"mean": pytest.approx(54.0), "std": pytest.approx(2**0.5)},
        "voted": {"mean": pytest.approx(54.0), "std": pytest.approx(2**0.5)},
    }
    assert (two["metric"], two["plain"], two["voted"], two["runs"]) == ("mean_iou", figure(25.0), None, 2)
    assert few["runs"] == 10 and few["plain"]["mean"] == pytest.approx(45) and few["voted"] is None


def test_rows_and_released_recipes_may_be_chosen(started, tmp_path):
    result = reproduce(
        PublishedTable("t", "d", "s", ROWS), tmp_path, tmp_path, only=["one, 1%"], released=True, voting=0
    )
    (row,) = result["rows"]
    recipe = str(tmp_path / "recipes" / "released" / "q1.yaml")
    assert row["recipe"] == recipe and result["settings"]["recipes"] == "as released"
    assert [one[2] for one in started if one[0] == "once"] == [[recipe, "--seed", "0"]]


def test_an_interrupted_table_shows_what_is_complete(started, tmp_path):
    reproduce(PublishedTable("t", "d", "s", {"two": ROWS["two"]}), tmp_path, tmp_path, seeds=[1, 2])
    written = [json.loads(text)["rows"][0]["runs"] for kind, text, *_ in (one for one in started if one[0] == "write")]
    assert written == [0, 1, 2]


def test_a_run_is_refused_where_its_inputs_have_changed(tmp_path, monkeypatch):
    known = {"--train_file": "a"}
    monkeypatch.setattr(folds, "identities_of_inputs", lambda words: dict(known))
    run = lambda words: replace(REPORT, metrics={"test": {"loss": 1.0}}).save(f"{words[-1]}/metrics.json")  # noqa: E731
    first = run_once(run, ["--lr", "1"], tmp_path / "run")
    assert first.metrics == {"test": {"loss": 1.0}}
    assert json.loads((tmp_path / "run" / "arguments.json").read_text()) == ["--lr", "1"]
    again = run_once(lambda words: 1 / 0, ["--lr", "1"], tmp_path / "run")
    assert again.metrics == first.metrics, "it is not repeated"
    known["--train_file"] = "b"
    with raises(ValueError, naming="--train_file"):
        run_once(run, ["--lr", "1"], tmp_path / "run")
    known.clear()
    with raises(ValueError, naming="--lr"):
        run_once(run, ["--lr", "2"], tmp_path / "run")


def test_programs_and_tables_are_found_in_the_examples(tmp_path):
    with raises(FileNotFoundError, naming="run_x"):
        for name in ("run_b.py", "run_a.py", "other.py"):
            (tmp_path / name).write_text("def main(words):\n    return words[0]\n")
        load_program(tmp_path, "run_x.py")
    assert load_program(tmp_path, "run_a.py")(["x"]) == "x"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "published.yaml").write_text(
        "t: {data: Shapes, source: Paper, rows: {a: {recipe: r, published: 1.5, way: 5, shot: 10, needs: it}}}"
    )
    assert find_examples(str(tmp_path)) == tmp_path and find_examples().name == "examples"
    row = PublishedRow("r", 1.5, way=5, shot=10, needs="it")
    assert published_tables(tmp_path) == {"t": PublishedTable("t", "Shapes", "Paper", {"a": row})}


@pytest.mark.parametrize(
    ("name", "needs", "problem"),
    [
        ("outputs/x", "train it", "no directory outputs/x; train it"),
        ("outputs/x", "", "outputs/x is not a directory, not in the cache and not reachable on the hub"),
        ("me/no-such", "train it", "me/no-such is not a directory, not in the cache and not reachable on the hub"),
        (".", "train it", None),
    ],
)
def test_what_a_recipe_starts_from_is_there_or_named(name, needs, problem):
    assert series._start_problem(name, needs) == problem


def test_problems_are_listed_once_with_their_rows(monkeypatch, tmp_path):
    recipes = {}
    for name, text in {
        "a": "model_name_or_path: one",
        "b": "encoder_name_or_path: one",
        "c": "model_name_or_path: two",
    }.items():
        (tmp_path / name).write_text(text + "\n")
        recipes[name] = str(tmp_path / name)
    rows = {name: PublishedRow(name, 1.0, needs=f"needs {name}") for name in recipes}
    data, starts = [], []
    monkeypatch.setattr(series, "_data_problem", lambda *given: data.append(given) or None)
    monkeypatch.setattr(series, "_start_problem", lambda *given: starts.append(given) or f"no {given[0]}")
    with pytest.raises(FileNotFoundError, match="not started, since something is missing. a, b: no one; c: no two$"):
        series._check_rows(rows, recipes, ["--lr", "1"])
    assert data == [(rows[name], recipes[name], ["--lr", "1"]) for name in rows]
    assert starts == [("one", "needs a"), ("one", "needs b"), ("two", "needs c")]
    with raises(FileNotFoundError, naming="a: no mine"):
        series._check_rows({"a": rows["a"]}, recipes, ["--model_name_or_path", "mine"])
    monkeypatch.setattr(series, "_start_problem", lambda *given: None)
    series._check_rows(rows, recipes, [])
