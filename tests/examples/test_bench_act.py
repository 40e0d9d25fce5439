"""The benchmark of ACT on shapes: every stage of every arm, what is stored, and that it goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel

from hf_any3d import load_point_dataset
from tests.examples.act_runs import AUTOENCODER, SHORT, STUDENT
from tests.examples.conftest import imported_beside_others

LITTLE = SHORT | {"num_train_epochs": 1, "max_train_samples": 16, "save_strategy": "no", "eval_strategy": "no"}
LITTLE |= {"validation_fraction": 0}
TUNING = {"model_type": "act3d", "model_config": {"num_groups": 8, "group_size": 8, **STUDENT["model_config"]}}
RECIPES = {
    "autoencoder": {"model_config": AUTOENCODER["model_config"], "teacher_layers": 1},
    "pretraining": {"model_config": STUDENT["model_config"]},
    "few_shot": {**TUNING, "few_shot": {"test_per_class": 2}, "max_train_samples": None, "max_eval_samples": None},
    "full": TUNING,
}


@pytest.fixture(scope="module")
def bench():
    with imported_beside_others("bench_act") as program:
        yield program


@pytest.fixture
def stages():
    import act_shapes

    return act_shapes


@pytest.fixture
def recipes(bench, stages, tiny_encoder, tmp_path, monkeypatch):
    """Recipes for runs of a moment."""
    for stage, own in RECIPES.items():
        settings = LITTLE | own | ({"teacher": tiny_encoder} if stage == "autoencoder" else {})
        (tmp_path / f"shapes_act_{stage}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(stages, "RECIPES", tmp_path)
    return tmp_path


def options(recipes: Path, *arms: str) -> list[str]:
    return ["--output-dir", str(recipes / "out"), "--arms", *arms, "--seeds", "1", "--folds", "2", "--clouds", "2"]


@pytest.mark.slow
def test_every_stage_of_an_arm_is_run_tabled_and_drawn_once(bench, stages, recipes, monkeypatch):
    bench.main(options(recipes, "scratch", "none"))
    summary = json.loads((recipes / "out" / "act_shapes.json").read_text())
    assert [row["arm"] for row in summary["tuning"]] == ["scratch", "none"]
    (row,) = summary["pretraining"]
    assert row["patches_before"] != row["patches_after"] > 0
    assert 1 <= row["codes_after"] <= 16 and 0 <= row["probe"] <= 1
    (row,) = summary["targets"]
    assert all(0 <= row[part] <= 1 for part in ("codes", "teacher", "targets")) and 0 < row["constant"] < 2
    few = [run for run in summary["runs"] if run["stage"] in bench.WAYS]
    assert len(few) == 6 and all(len(run["folds"]) == 2 for run in few)
    text = (recipes / "out" / "act_shapes.md").read_text()
    assert "from scratch" in text and "no teacher" in text
    assert (recipes / "out" / "act_reconstructions.png").stat().st_size
    monkeypatch.setattr(stages, "_RUN", {})
    monkeypatch.setattr(stages, "few_shot", None)
    monkeypatch.setattr(bench, "draw", lambda *drawn: None)
    bench.main(options(recipes, "scratch", "none"))
    assert json.loads((recipes / "out" / "act_shapes.json").read_text()) == summary


@pytest.mark.slow
def test_a_random_teacher_has_the_shape_and_not_the_weights_of_the_pretrained_one(stages, recipes, tiny_encoder):
    pretrained = AutoModel.from_pretrained(tiny_encoder).encoder.layer[0].attention.self.query.weight
    found = []
    for arm in ("pretrained", "random"):
        stages.run_stage(arm, "autoencoder", 0, recipes / "out", 1)
        model = stages.ActAutoencoder.from_pretrained(recipes / "out" / f"{arm}-0" / "autoencoder")
        found.append(model.encoder.encoder.layer[0].attention.self.query.weight)
    assert found[0].shape == found[1].shape == pretrained.shape
    assert torch.equal(found[0], pretrained) and not torch.equal(found[1], pretrained)


def test_another_recipe_of_the_first_stage_makes_later_stages_anew_and_leaves_those_from_scratch(stages, recipes):
    before = {arm: stages.deciding_settings(arm, "full", 2) for arm in stages.ARMS}
    path = recipes / "shapes_act_autoencoder.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"learning_rate": 0.5}))
    after = {arm: stages.deciding_settings(arm, "full", 2) for arm in stages.ARMS}
    assert [arm for arm in stages.ARMS if before[arm] == after[arm]] == ["scratch"]


def test_a_folder_that_was_begun_by_other_settings_is_begun_anew(stages, tmp_path):
    stages._forget_other(tmp_path / "run", {"steps": 1})
    (tmp_path / "run" / "checkpoint").write_text("half")
    stages._forget_other(tmp_path / "run", {"steps": 1})
    assert (tmp_path / "run" / "checkpoint").is_file()
    stages._forget_other(tmp_path / "run", {"steps": 2})
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_validation_part_holds_training_shapes_alone_and_shares_no_group(stages, tmp_path):
    settings = stages.write_validation_cut(tmp_path / "data")
    cut = load_point_dataset(settings["dataset_name"], data_dir=settings["data_dir"])
    whole = load_point_dataset("shapes")
    names = {split: set(rows["name"]) for split, rows in cut.items()}
    assert names["train"] | names["test"] == set(whole["train"]["name"])
    assert not names["train"] & names["test"] and not names["test"] & set(whole["test"]["name"])
    assert not set(cut["train"]["group"]) & set(cut["test"]["group"])


@pytest.mark.slow
def test_settings_are_chosen_by_few_shot_accuracy_on_the_validation_part(bench, stages, recipes, monkeypatch, capsys):
    seen = []

    def few_shot(arm, stage, seed, place, folds, changes):
        settings = stages.recipe_of(stage, changes)
        seen.append(settings["data_dir"])
        return {"accuracy": {"scratch": 0.5, "pretrained": 0.6}[arm] + settings.get("learning_rate", 0)}

    monkeypatch.setattr(stages, "few_shot", few_shot)
    monkeypatch.setattr(stages, "_RUN", dict.fromkeys(stages.PRETRAINING, lambda *stage: {}))
    monkeypatch.setattr(bench, "CANDIDATES", {"as it is": {}, "other rate": {"tuning": {"learning_rate": 0.1}}})
    bench.main([*options(recipes, "scratch"), "--choose"])
    assert set(seen) == {str(recipes / "out" / "choice" / "data")}
    assert capsys.readouterr().out.endswith("Chosen: other rate\n")
    rows = json.loads((recipes / "out" / "choice" / "act_shapes_choice.json").read_text())["rows"]
    assert [row["mean"] for row in rows] == pytest.approx([0.65, 0.56])


def test_gain_is_taken_seed_by_seed(bench):
    def run(arm, seed, accuracy, stage="full"):
        return {"arm": arm, "stage": stage, "seed": seed, "accuracy": accuracy}

    runs = [run("scratch", 0, 0.2), run("scratch", 1, 0.6), run("none", 0, 0.3), run("none", 1, 0.7)]
    row = bench.tuning_row(runs, "none")
    assert row["full_gain"] == pytest.approx(0.1) and row["full_gain_std"] == pytest.approx(0)
    assert "few" not in row and "full_gain" not in bench.tuning_row(runs[2:], "none")
