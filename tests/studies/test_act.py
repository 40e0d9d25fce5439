"""The study of ACT: every stage of an arm, what is stored, and that stored runs are not repeated."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel

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


def test_random_teacher_has_the_shape_and_other_weights(recipes, tiny_encoder):
    pretrained = AutoModel.from_pretrained(tiny_encoder).encoder.layer[0].attention.self.query.weight
    found = []
    for arm in ("pretrained", "random"):
        act_stages.run_stage(arm, "autoencoder", 0, recipes / "out", 1)
        model = act_stages.ActAutoencoder.from_pretrained(recipes / "out" / f"{arm}-0" / "autoencoder")
        found.append(model.encoder.encoder.layer[0].attention.self.query.weight)
    assert found[0].shape == found[1].shape == pretrained.shape
    assert torch.equal(found[0], pretrained) and not torch.equal(found[1], pretrained)


def test_arms_with_the_same_first_stage_share_its_autoencoder(recipes, monkeypatch):
    firsts = {arm: act_stages.first_stage_of(arm, 2) for arm in act_stages.ARMS if arm != "scratch"}
    assert firsts == {arm: arm for arm in firsts} | {"output": "pretrained"}
    calls = []

    def stage(arm, stage, seed, place, folds, changes):
        calls.append((arm, stage, place.name, changes["pretraining"]["autoencoder"]))
        return {}

    monkeypatch.setattr(act_stages, "_RUN", dict.fromkeys(act_stages.PRETRAINING, stage))
    for arm in ("pretrained", "output"):
        for name in act_stages.PRETRAINING:
            assert act_stages.run_stage(arm, name, 0, recipes / "out", 1)["arm"] == arm
    trained = str(recipes / "out" / "pretrained-0" / "autoencoder")
    assert calls == [
        ("pretrained", "autoencoder", "pretrained-0", trained),
        ("pretrained", "pretraining", "pretrained-0", trained),
        ("output", "pretraining", "output-0", trained),
    ]


def test_arms_change_only_what_their_titles_name(recipes):
    def changed(arm, other, stage):
        first, second = (act_stages.settings_of(one, stage, 2) for one in (arm, other))
        return {name for name in first if first[name] != second[name]}

    assert changed("output", "pretrained", "full") == {"pretraining"}
    assert changed("more", "none", "full") == {"more_shapes"}
    assert changed("random", "pretrained", "full") == {"autoencoder"}
    config = act_stages.recipe_of("pretraining", act_stages.changes_of("output", {}))["model_config"]
    assert config == {**STUDENT["model_config"], "target_layer": "teacher"}


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


def test_changed_recipe_of_the_first_stage_affects_all_arms_with_pretraining(recipes):
    before = {arm: act_stages.settings_of(arm, "full", 2) for arm in act_stages.ARMS}
    path = recipes / "shapes_act_autoencoder.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"learning_rate": 0.5}))
    after = {arm: act_stages.settings_of(arm, "full", 2) for arm in act_stages.ARMS}
    assert [arm for arm in act_stages.ARMS if before[arm] == after[arm]] == ["scratch"]


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


def test_validation_takes_a_fold_for_each_seed(recipes, monkeypatch):
    seen = []

    def run_stage(arm, stage, seed, folder, folds, changes):
        settings = act_stages.recipe_of(stage, changes)
        seen.append((seed, Path(settings["data_dir"]).name, settings.get("few_shot")))
        return {"arm": arm, "stage": stage, "seed": seed, "accuracy": 0.5, "cpu_seconds": 1, "seconds": 1} | {
            "peak_memory": None
        }

    monkeypatch.setattr(act, "run_stage", run_stage)
    monkeypatch.setattr(act, "write_fold", lambda folder, fold: {"dataset_name": "parquet", "data_dir": str(folder)})
    act.main([*options(recipes, "scratch"), "--validate", "--stages", "few_5", "full"])
    assert [(seed, name) for seed, name, _ in seen] == [(fold, f"data-{fold}") for fold in range(5) for _ in (0, 1)]
    assert [few_shot for *_, few_shot in seen[:2]] == [{"test_per_class": 3}, None]
    assert (recipes / "out" / "folds" / "act_shapes_folds.md").is_file()


def test_settings_are_chosen_by_few_shot_accuracy_on_the_validation_part(recipes, monkeypatch, capsys):
    seen = []

    def few_shot(arm, stage, seed, place, folds, changes):
        settings = act_stages.recipe_of(stage, changes)
        seen.append(settings["data_dir"])
        return {"accuracy": {"scratch": 0.5, "pretrained": 0.6}[arm] + settings.get("learning_rate", 0)}

    monkeypatch.setattr(act_stages, "few_shot", few_shot)
    monkeypatch.setattr(act_stages, "_RUN", dict.fromkeys(act_stages.PRETRAINING, lambda *stage: {}))
    monkeypatch.setattr(act, "CANDIDATES", {"as it is": {}, "other rate": {"tuning": {"learning_rate": 0.1}}})
    act.main([*options(recipes, "scratch"), "--choose"])
    assert set(seen) == {str(recipes / "out" / "choice" / "data")}
    assert capsys.readouterr().out.endswith("Chosen: other rate\n")
    rows = read_table(recipes / "out" / "choice" / "act_shapes_choice.parquet")["rows"]
    assert [row["mean"] for row in rows] == pytest.approx([0.65, 0.56])


def test_gain_is_computed_seed_by_seed():
    def run(arm, seed, accuracy, stage="full"):
        return {"arm": arm, "stage": stage, "seed": seed, "accuracy": accuracy}

    runs = [run("scratch", 0, 0.2), run("scratch", 1, 0.6), run("none", 0, 0.3), run("none", 1, 0.7)]
    row = act.tuning_row(runs, "none")
    assert row["full_gain"] == pytest.approx(0.1) and row["full_gain_std"] == pytest.approx(0)
    assert "few" not in row and "full_gain" not in act.tuning_row(runs[2:], "none")
