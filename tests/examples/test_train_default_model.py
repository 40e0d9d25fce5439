"""The packaged classifier's training: things of no class, calibration, and what the model makes of others."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from transformers.modeling_outputs import SequenceClassifierOutput

from examples import quickstart, train_default_model as program
from hf_any3d import ActForPointCloudClassification
from tests.tiny_act import tiny_act

NAMES = ["bed", "chair", "tool"]


@pytest.fixture
def rows() -> Dataset:
    """Six long clouds that stand upright."""
    generator = np.random.default_rng(0)
    clouds = generator.uniform(-1, 1, (6, 64, 3)) * [0.1, 1, 0.1]
    features = Features(
        points=Array2D((64, 3), "float32"), label=ClassLabel(names=NAMES), group=Value("int32"), name=Value("string")
    )
    columns = {"points": clouds.astype(np.float32), "label": [0, 1, 2] * 2, "group": range(6), "name": ["a"] * 6}
    return Dataset.from_dict({**columns, "group": list(range(6))}, features=features).with_format("numpy")


def test_rows_come_first_and_others_are_drawn_anew(rows):
    dataset = program.WithOthers(rows, {}, {"noise": 1.0})
    assert len(dataset) == 9 and [int(dataset[number]["label"]) for number in range(6)] == [0, 1, 2] * 2
    torch.manual_seed(0)
    first, second = dataset[6], dataset[6]
    assert first["label"] == program.NO_CLASS and first["points"].shape[1] == 3
    assert not np.array_equal(first["points"], second["points"])


def test_what_lies_is_of_an_upright_class_and_slivers_are_parts(rows):
    dataset = program.WithOthers(rows, {}, {"lying": 1.0})
    assert set(dataset.upright) == {0, 1, 3, 4}  # beds and chairs
    points = dataset[7]["points"]
    assert np.ptp(points, axis=0).argmax() == 0
    cloud = dataset.clouds[:1]
    sliver = program.draw_stranger("sliver", cloud, cloud, np.random.default_rng(0))
    assert sliver.shape == (64, 3) and len(np.unique(sliver, axis=0)) < 10
    with pytest.raises(ValueError, match="kind is 'cat'"):
        program.draw_stranger("cat", cloud, cloud, np.random.default_rng(0))


def test_the_loss_wants_equal_scores_for_others_and_the_class_for_the_rest():
    labels = torch.tensor([1, program.NO_CLASS])
    even, sure = torch.zeros(2, 3), torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    mixed = torch.stack([sure[0], even[1]])
    losses = [program.doubting_loss(SequenceClassifierOutput(logits=logits), labels) for logits in (mixed, even, sure)]
    assert losses[0] < losses[1] and losses[0] < losses[2]
    # Without others it is the loss of the other stages.
    known = SequenceClassifierOutput(logits=torch.randn(4, 3)), torch.tensor([0, 1, 2, 0])
    assert torch.allclose(program.doubting_loss(*known), quickstart.smoothed_loss(*known))


def test_a_model_is_calibrated_on_shapes_that_it_has_not_learned(rows, monkeypatch):
    monkeypatch.setattr(program, "THINGS", 10)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    model = tiny_act(ActForPointCloudClassification, **labels).eval()
    calibration = program.calibrate(model, rows.select(range(3)), rows.select(range(3, 6)))
    before = model(torch.from_numpy(rows["points"][:])).logits
    program.finish(model, rows, calibration)
    after = model(torch.from_numpy(rows["points"][:]))
    assert torch.allclose(after.logits, before / calibration["temperature"], atol=1e-5)
    assert after.unknown.shape == (6,) and model.config.unknown_far == program.FAR
    assert model.config.unknown_threshold == calibration["unknown_threshold"]
    found = program.judge_doubt(model, rows)
    assert set(found) >= {"test shapes", "room", "noise", "plane", "bar", "solid", "sliver", "lying"}
    assert all(0 <= row["auroc"] <= 1 for kind, row in found.items() if kind != "test shapes")
    assert "| test shapes | – | " in program.doubt_table(found)


def test_the_calibration_error_is_the_gap_of_score_and_accuracy():
    scores, right = torch.tensor([0.75] * 4), torch.tensor([True, True, True, False])
    assert program.calibration_error(scores, right) == pytest.approx(0)
    assert program.calibration_error(scores, ~right) == pytest.approx(0.5)
