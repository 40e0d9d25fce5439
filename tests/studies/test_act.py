"""The study of ACT: its folds, and generated shapes that are learned from beside them."""

import pytest

from hf_any3d import load_point_dataset
from studies import act_stages


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
