"""The study of ACT: every stage of an arm, what is stored, and that stored runs are not repeated."""

from pathlib import Path

import pytest
import yaml

from hf_any3d import load_point_dataset
from studies import act, act_stages
from studies.tables import read_table
from tests.examples.act_runs import AUTOENCODER, SHORT, STUDENT

LITTLE = SHORT | {"num_train_epochs": 1, "max_train_samples": 16, "save_strategy": "no", "eval_strategy": "no"}
LITTLE |= {"validation_fraction": 0}
TUNING = {"model_type": "act3d", "model_config": {"num_groups": 8, "group_size": 8, **STUDENT["model_config"]}}
RECIPES = {
    "autoencoder": {"model_config": AUTOENCODER["model_config"], "teacher_layers": 1},
    "pretraining": {"model_config": STUDENT["model_config"]},
    "few_shot": {**TUNING, "few_shot": {"test_per_class": 2}, "max_train_samples": None, "max_eval_samples": None},
    "full": TUNING,
}


@pytest.fixture
def recipes(tiny_encoder, tmp_path, monkeypatch):
    """Recipes of short runs."""
    for stage, own in RECIPES.items():
        settings = LITTLE | own | ({"teacher": tiny_encoder} if stage == "autoencoder" else {})
        (tmp_path / f"shapes_act_{stage}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(act_stages, "RECIPES", tmp_path)
    return tmp_path


def options(recipes: Path, *arms: str) -> list[str]:
    return ["--output-dir", str(recipes / "out"), "--arms", *arms, "--seeds", "1", "--folds", "2", "--clouds", "2"]


def test_every_stage_of_an_arm_is_run_once_with_table_and_picture(recipes, monkeypatch):
    act.main(options(recipes, "scratch", "none"))
    summary = read_table(recipes / "out" / "act_shapes.parquet")
    assert [row["arm"] for row in summary["tuning"]] == ["scratch", "none"]
    (row,) = summary["pretraining"]
    assert row["patches_before"] != row["patches_after"] > 0
    assert 1 <= row["codes_after"] <= 16 and 0 <= row["probe"] <= 1
    (row,) = summary["targets"]
    assert all(0 <= row[part] <= 1 for part in ("codes", "teacher", "targets")) and 0 < row["constant"] < 2
    few = [run for run in summary["runs"] if run["stage"] in act.WAYS]
    assert len(few) == 6 and all(len(run["folds"]) == 2 for run in few)
    text = (recipes / "out" / "act_shapes.md").read_text()
    assert "from scratch" in text and "no teacher" in text
    assert (recipes / "out" / "act_reconstructions.png").stat().st_size
    monkeypatch.setattr(act_stages, "_RUN", {})
    monkeypatch.setattr(act_stages, "few_shot", None)
    monkeypatch.setattr(act, "draw", lambda *drawn: None)
    act.main(options(recipes, "scratch", "none"))
    assert read_table(recipes / "out" / "act_shapes.parquet") == summary


@pytest.mark.parametrize("of_a_fold", [False, True])
def test_generated_shapes_are_learned_from_and_not_evaluated(of_a_fold, tmp_path):
    data = act_stages.write_fold(tmp_path / "fold", 0) if of_a_fold else {"dataset_name": "shapes"}
    own = {**data, "validation_fraction": 0}
    changes = {"more_shapes": {"per_class": 1, "classes": ["mug", "chair"]}}
    more = act_stages.with_more_shapes(own, tmp_path, changes)
    before, after = (
        act_stages.load_splits(act_stages.PretrainingDataArguments(**settings))[0] for settings in (own, more)
    )
    assert len(after["train"]) == len(before["train"]) + 2 and len(after["test"]) == len(before["test"])
    assert act_stages.with_more_shapes(own, tmp_path, {}) == own


def test_folds_share_the_training_shapes_and_no_group(tmp_path):
    shapes, tested = load_point_dataset("shapes"), []
    for fold in range(2):
        settings = act_stages.write_fold(tmp_path / str(fold), fold)
        cut = load_point_dataset(settings["dataset_name"], data_dir=settings["data_dir"])
        names = {split: set(rows["name"]) for split, rows in cut.items()}
        assert names["train"] | names["test"] == set(shapes["train"]["name"])
        assert not names["train"] & names["test"] and not names["test"] & set(shapes["test"]["name"])
        assert not set(cut["train"]["group"]) & set(cut["test"]["group"])
        assert set(cut["test"]["label"]) == set(shapes["train"]["label"])
        tested.append(names["test"])
    assert not tested[0] & tested[1]
