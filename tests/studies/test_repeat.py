"""`python -m studies.repeat`: published tables and sweeps, with real training programs and tiny models."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from studies import repeat, series
from tests.errors import raises
from tests.tiny_encoders import saved_encoder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*arguments):
    return CliRunner().invoke(repeat.app, list(map(str, arguments)))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A short recipe in a folder of examples with a table of one row."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "examples" / "recipes"
    folder.mkdir(parents=True)
    settings = {
        "encoder_name_or_path": saved_encoder("bert"),
        "num_tokens": 8,
        "tokenizer_neighbors": 4,
        "num_points": 64,
        "validation_fraction": 0,
        "max_steps": 2,
        "max_train_samples": 16,
        "max_eval_samples": 12,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    table = {"data": "Shapes", "source": "Nobody (2026)", "rows": {"tiny": {"recipe": "tiny", "published": 90.0}}}
    (folder / "published.yaml").write_text(yaml.safe_dump({"tiny-shapes": table}))
    (folder.parent / "run_point_cloud_classification.py").symlink_to(EXAMPLES / "run_point_cloud_classification.py")
    return folder / "tiny.yaml"


def test_table_is_trained_and_evaluated_plain_and_voted_apart(recipe):
    result = run("reproduce", "tiny-shapes", "--examples", recipe.parents[1], "--voting", 2, "--learning_rate", "0.01")
    assert result.exit_code == 0, result.output
    folder = Path("outputs/reproduce/tiny-shapes")
    (row,) = json.loads((folder / "tiny-shapes.json").read_text())["rows"]
    metrics = json.loads((folder / "tiny" / "seed_0" / "metrics.json").read_text())["metrics"]
    assert row["plain"]["mean"] == pytest.approx(100 * metrics["test"]["accuracy"])
    assert row["voted"]["mean"] == pytest.approx(100 * metrics["test_voting"]["accuracy"])
    assert result.stdout == (folder / "tiny-shapes.md").read_text() and "| tiny | 90.0 |" in result.stdout
    assert "Changed arguments: --learning" in result.stdout


def test_sweep_of_a_recipe_prints_its_table(recipe):
    words = ["sweep", recipe, "--seeds", "0", "--vary", "max-steps=1,2"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["settings"] for row in rows] == [{"max_steps": "1"}, {"max_steps": "2"}]
    assert all(set(row["summary"]) == {"test"} for row in rows)
    again = run(*words)
    assert again.exit_code == 0 and again.stdout == Path("outputs/sweep/sweep.md").read_text()


def test_options_of_the_program_may_come_without_a_recipe(monkeypatch):
    given = []
    monkeypatch.setattr(series, "sweep", lambda run, words, *others: given.append((words, *others)) or {"rows": []})
    assert (
        run("sweep", "--dataset_name", "shapes", "--seeds", 4, "--augment", "scale", "shift", "--json").exit_code == 0
    )
    words = ["--dataset_name", "shapes", "--augment", "scale", "shift"]
    assert given == [(words, Path("outputs/sweep"), {}, [4])]


def test_tables_are_listed_without_a_name():
    lines = run("reproduce").stdout.splitlines()
    assert lines[0].startswith("any2point-scanobjectnn: ScanObjectNN")
    assert any(line.split() == ["clip", "91.9", "any2point_clip_scanobjectnn_pb_t50_rs.yaml"] for line in lines)
    listed = json.loads(run("reproduce", "--json").stdout)
    assert listed["act-s3dis"]["rows"]["full"]["published"] == 61.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "nope"], "unknown table 'nope'; expected one of any2point-scanobjectnn"),
        (["reproduce", "act-s3dis", "--seeds", "one"], "--seeds is 'one'; expected whole numbers such as 0,1,2"),
        (["sweep", "--vary", "peft"], "--vary is 'peft'; expected NAME=VALUE,VALUE"),
        (["sweep", "outputs"], "'outputs' is not a recipe; expected a .yaml or .json file"),
        (["sweep", "none.yaml"], "no file none.yaml"),
        (["sweep", "--program", "run.py"], "run_point_cloud_classification.py"),
    ],
)
def test_wrong_arguments_are_one_line(words, message):
    result = run(*words)
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        ([], {}),
        (["learning_rate=1e-3, 5e-4"], {"learning_rate": ["1e-3", "5e-4"]}),
        (["--max-steps=1", " peft=lora"], {"max_steps": ["1"], "peft": ["lora"]}),
        (["augment=scale,jitter; none"], {"augment": ["scale,jitter", "none"]}),
        (["a="], {"a": [""]}),
        (["a=b=c"], {"a": ["b=c"]}),
    ],
)
def test_settings_of_a_sweep_have_values(texts, settings):
    assert repeat._parse_settings(texts) == settings


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=1", "a=2"], ["a-b=1", "--a_b=2"]])
def test_settings_without_a_name_or_with_one_twice_are_refused(texts):
    with raises(ValueError, naming="NAME=VALUE,VALUE, each name once"):
        repeat._parse_settings(texts)


def test_seeds_are_whole_numbers():
    assert repeat._parse_seeds("0, 1,22") == [0, 1, 22]
    for text in ("", "1,", "-1", "1.5"):
        with raises(ValueError, naming="expected whole numbers"):
            repeat._parse_seeds(text)


def test_options_of_a_table_reach_its_training(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(series, "find_examples", lambda examples: examples)
    monkeypatch.setattr(series, "published_tables", lambda folder: {"t": "table"})
    monkeypatch.setattr(series, "reproduce", lambda *one, **more: given.append((one, more)) or {})
    plain = ("reproduce", "t", "--json")
    words = ("--data-dir", "d", "--row", "a", "--row", "b", "--output-dir", tmp_path, "--seeds", "1,2", "--voting", 3)
    further = ("--released", "--start", "me/m", "--examples", tmp_path, "--max_steps", 5)
    assert run(*plain).exit_code == run(*plain, *words, *further).exit_code == 0
    (one, more), (other, others) = given
    assert one == ("table", None, Path("outputs/reproduce/t")) and other == ("table", tmp_path, tmp_path / "t")
    usual = {"data_dir": None, "only": (), "seeds": [0], "voting": 10, "released": False, "start": None, "words": []}
    assert more == usual
    assert others == {
        "data_dir": "d", "only": ["a", "b"], "seeds": [1, 2], "voting": 3, "released": True, "start": "me/m",
        "words": ["--max_steps", "5"],
    }  # fmt: skip


def test_options_of_a_sweep_reach_its_program(monkeypatch, tmp_path):
    given = []
    (tmp_path / "r.yaml").touch()
    monkeypatch.setattr(series, "find_examples", lambda examples: f"examples of {examples}")
    monkeypatch.setattr(series, "load_program", lambda *one: given.append(one) or "program")

    def sweep(*one):
        given.append(one)
        folder = one[2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.md").write_text("| a |\n| b |\n")
        return {"rows": [1]}

    monkeypatch.setattr(series, "sweep", sweep)
    words = ("--vary", "a-b=1,2", "--vary", "c=x;y", "--output-dir", tmp_path / "out", "--seeds", "3,4")
    more = ("--program", "run.py", "--examples", tmp_path, "--num_train_epochs", 5)
    found = run("sweep", tmp_path / "r.yaml", *words, *more)
    assert found.exit_code == 0 and found.stdout == "| a |\n| b |\n", found.output
    assert found.stderr.splitlines()[-1] == f"{tmp_path / 'out' / 'sweep'}.json, .md and .tex have this table."
    arguments = [str(tmp_path / "r.yaml"), "--num_train_epochs", "5"]
    settings = {"a_b": ["1", "2"], "c": ["x", "y"]}
    assert given == [
        (f"examples of {tmp_path}", "run.py"),
        ("program", arguments, tmp_path / "out", settings, [3, 4]),
    ]
    monkeypatch.setattr("hf_any3d.training.tasks.train_classifier", "classifier")
    found = run("sweep", "--output-dir", tmp_path / "out", "--json")
    assert json.loads(found.stdout) == {"rows": [1]}
    assert given[-1] == ("classifier", [], tmp_path / "out", {}, [0, 1, 2])


def test_published_tables_are_listed_with_their_rows(monkeypatch):
    monkeypatch.setattr(series, "find_examples", lambda examples: examples)
    monkeypatch.setattr(series, "published_tables", lambda folder: {"t": make_table(folder)})
    lines = run("reproduce", "--examples", "x").stdout.splitlines()
    assert lines == [
        "t: Data of x; Paper",
        "  plain            1.5   a.yaml",
        "  odd              2.5 ± 0.25   b.yaml",
    ]


def make_table(folder):
    """A table of two rows, one of which has a deviation."""
    facts = [("plain", 1.5, 0, "a"), ("odd", 2.5, 0.25, "b")]
    rows = {name: SimpleNamespace(published=p, deviation=d, recipe=r) for name, p, d, r in facts}
    return SimpleNamespace(data=f"Data of {folder}", source="Paper", rows=rows)
