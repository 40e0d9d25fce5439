"""The packaged classifier's unknown score: things of no class, calibration, and what the model makes of others."""

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from examples import unknown_things as program
from hf_any3d import ActForPointCloudClassification
from tests.tiny_act import tiny_act

NAMES = ["bed", "chair", "tool"]


def upright_rows() -> Dataset:
    """Return six long clouds that stand upright, two of each class."""
    generator = np.random.default_rng(0)
    clouds = generator.uniform(-1, 1, (6, 64, 3)) * [0.1, 1, 0.1]
    features = Features(
        points=Array2D((64, 3), "float32"), label=ClassLabel(names=NAMES), group=Value("int32"), name=Value("string")
    )
    columns = {"points": clouds.astype(np.float32), "label": [0, 1, 2] * 2, "group": list(range(6)), "name": ["a"] * 6}
    return Dataset.from_dict(columns, features=features).with_format("numpy")


def test_a_model_is_calibrated_on_shapes_that_it_has_not_learned():
    rows = upright_rows()
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    model = tiny_act(ActForPointCloudClassification, **labels).eval()
    calibration = program.calibrate(model, rows.select(range(3)), rows.select(range(3, 6)))
    before = model(torch.from_numpy(rows["points"][:])).logits
    model.classifier.calibrate(calibration["temperature"])
    program.finish(model, rows, calibration)
    after = model(torch.from_numpy(rows["points"][:]))
    assert torch.allclose(after.logits, before / calibration["temperature"], atol=1e-5)
    assert after.unknown.shape == (6,) and model.config.unknown.threshold == calibration["threshold"]
    assert model.config.unknown.share is None
    assert model.config.unknown.rows == 6
    level = program.find_level(model, rows)
    assert level["stated"] == model.config.unknown.share == 1 / 13 and 0 <= level["measured"] <= 1
    found = program.judge_doubt(model, rows)
    assert set(found) >= {"test shapes", "room", "noise", "plane", "bar", "street", "solid", "sliver", "lying"}
    assert all(0 <= row["auroc"] <= 1 for kind, row in found.items() if kind != "test shapes")
    assert "| test shapes | – | " in program.doubt_table(found)
