"""`python -m examples.repeat`: published tables and sweeps, with real training programs and tiny models."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from examples.repeat import __main__ as repeat
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
    tables = {"papers": {"nobody": "Nobody"}, "tables": {"tiny-shapes": {"paper": "nobody", **table}}}
    (folder / "published.yaml").write_text(yaml.safe_dump(tables))
    (folder.parent / "run_point_cloud_classification.py").symlink_to(EXAMPLES / "run_point_cloud_classification.py")
    return folder / "tiny.yaml"


@pytest.mark.slow
def test_table_is_trained_and_evaluated_plain_and_voted_apart(recipe):
    result = run("reproduce", "tiny-shapes", "--examples", recipe.parents[1], "--voting", 2, "--learning_rate", "0.01")
    assert result.exit_code == 0, result.output
    folder = Path("outputs/reproduce/tiny-shapes")
    (row,) = json.loads((folder / "tiny-shapes.json").read_text())["rows"]
    metrics = json.loads((folder / "tiny" / "seed_0" / "metrics.json").read_text())["metrics"]
    assert row["plain"]["mean"] == pytest.approx(100 * metrics["test"]["accuracy"])
    assert row["voted"]["mean"] == pytest.approx(100 * metrics["test_voting"]["accuracy"])
    assert result.stdout == (folder / "tiny-shapes.md").read_text() and "| tiny | 90.0 |" in result.stdout
    assert "Changed arguments: --learning" in result.stdout and "Nobody; " in result.stdout


@pytest.mark.slow
def test_sweep_of_a_recipe_prints_its_table(recipe):
    words = ["sweep", recipe, "--seeds", "0", "--vary", "max-steps=1,2"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["settings"] for row in rows] == [{"max_steps": "1"}, {"max_steps": "2"}]
    assert all(set(row["summary"]) == {"test"} for row in rows)
    again = run(*words)
    assert again.exit_code == 0 and again.stdout == Path("outputs/sweep/sweep.md").read_text()


def test_what_is_missing_is_told_in_a_line_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("reproduce", "act-scanobjectnn", "--data-dir", tmp_path, "--row", "pb_t50_rs", "--row", "obj_bg")
    first, *rest = result.stderr.splitlines()
    assert result.exit_code == 1 and first == "error: not started, since something is missing; --dry-run needs nothing"
    assert any(line.startswith("  all rows: outputs/recipes/act_pretraining_shapenet55") for line in rest)
    assert any("h5_files/main_split" in line for line in rest)


@pytest.mark.slow
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
