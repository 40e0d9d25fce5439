"""The study of ACT's codebook: curves, figures and picture of short runs."""

from pathlib import Path

import yaml

from studies import act_codes, act_stages
from studies.tables import read_table
from tests.examples.act_runs import AUTOENCODER, SHORT, STUDENT

LITTLE = SHORT | {"max_steps": 4, "max_train_samples": 16, "validation_fraction": 0, "load_best_model_at_end": False}
RECIPES = {"autoencoder": AUTOENCODER["model_config"], "pretraining": STUDENT["model_config"]}


def test_curves_of_codes_and_of_a_student_are_drawn_and_kept(tmp_path, monkeypatch):
    for stage, config in RECIPES.items():
        (tmp_path / f"shapes_act_{stage}.yaml").write_text(yaml.safe_dump(LITTLE | {"model_config": config}))
    monkeypatch.setattr(act_stages, "RECIPES", tmp_path)
    monkeypatch.setattr(act_codes, "EVERY", 2)
    folder = tmp_path / "out"
    # This one has the recipe's number of steps.
    name = "nearest, averages, restarts, 8 channels, 1,600 steps"
    words = ["--output-dir", str(folder), "--arms", name, "--seeds", "1"]
    act_codes.main(words)
    summary = read_table(folder / "act_codes.parquet")
    (one,) = summary["runs"]
    for curve in one["curves"].values():
        assert [at["step"] for at in curve] == [2, 4]
    assert 1 <= one["code_perplexity"] <= one["codes_used"] <= 16 and 0 < one["targets"] < 2
    assert one["curves"]["autoencoder"][-1]["loss"] == one["loss"]
    row = next(line for line in (folder / "act_codes.md").read_text().splitlines() if name in line)
    assert "±" not in row, "one seed has no deviation"
    assert (folder / "act_codes.png").stat().st_size
    monkeypatch.setattr(act_codes, "run_act_autoencoder", None)
    act_codes.main(words)
    assert read_table(folder / "act_codes.parquet")["runs"] == summary["runs"]
    assert Path(folder / "runs").is_dir()


def test_the_rule_takes_the_smallest_error_among_codebooks_in_use():
    names = ("codes_used", "code_perplexity", "loss")
    figures = {
        "few codes": (100, 90, 0.1),
        "uneven": (200, 100, 0.1),
        "even": (200, 130, 0.2),
        "worse": (256, 200, 0.3),
    }
    rows = [{"setting": name, **dict(zip(names, own, strict=True))} for name, own in figures.items()]
    assert act_codes.choose(rows, 256) == "even" and act_codes.choose(rows[:2], 256) is None
