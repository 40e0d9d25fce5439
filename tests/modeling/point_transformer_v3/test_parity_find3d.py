"""Find3D against a stored run of the released program: from a raw cloud to labels, and a step of training."""

from functools import partial

import numpy as np
import pytest
import torch

from hf_any3d import PointTransformerV3Processor
from hf_any3d.conversions.point_transformer_v3.names import convert_supervised_state_dict, supervised_fields
from hf_any3d.modeling.point_transformer_v3 import (
    PRESETS,
    PointTransformerV3Config,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
)
from hf_any3d.processing.voxels import VOXEL_PRESETS
from tests.conversions.undone import as_theirs
from tests.modeling.point_transformer_v3.test_parity import recorded
from tests.modeling.ptv3_case import Find3DCase

CASE = Find3DCase("ptv1_find3d")
TOLERANCE = CASE.manifest["tolerance"]


def fields(**settings) -> dict:
    """Fields of the config of the case's model, in its original order of layers."""
    given = CASE.arguments
    own = supervised_fields(given["extractor"], block_rule="full", depth_rule="max")
    own |= {name: value for name, value in PRESETS["find3d"].items() if name not in own}
    own |= {"in_channels": 9, "text_embedding_size": given["dim_output"], "text_head_widths": [given["emb"]] * 3}
    return own | {"depth_of_batch": True, "shuffle_curves": "never", "drop_path_rate": 0.0} | settings


@pytest.fixture
def model():
    own = fields()
    built = PointTransformerV3ForZeroShotPointCloudSegmentation(PointTransformerV3Config(**own))
    built.load_state_dict(convert_supervised_state_dict(CASE.tensors(), own), strict=True)
    return built.eval()


def processor(part: str, monkeypatch, **settings) -> PointTransformerV3Processor:
    """The processor of Find3D, which draws the points that were drawn in the stored run."""
    kept = CASE.expected[f"{part}kept"].long().numpy()
    monkeypatch.setattr(PointTransformerV3Processor, "_draw", lambda self, count, generator: kept)
    return PointTransformerV3Processor(**VOXEL_PRESETS["find3d"] | settings)


def sorted_by_cell(cells: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    order = (cells.long() * torch.tensor([10**8, 10**4, 1])).sum(dim=1).argsort()
    return [cells.long()[order], *(values[order] for values in others)]


# The program of the demo lifts a cloud by half of its lowest height; that of the benchmarks scales nothing.
SETTINGS = {"": {"box_center": "half_ground"}, "benchmark.": {"scale": None, "factor": 1.0}}


@pytest.mark.parametrize("part", SETTINGS)
def test_the_processor_makes_the_stored_voxels(part, monkeypatch):
    cloud = CASE.cloud("benchmark" if part else "input")
    made = processor(part, monkeypatch, **SETTINGS[part])(cloud)
    values, cells = CASE.rows(part)
    expected_cells, expected = sorted_by_cell(cells, values)
    found_cells, found = sorted_by_cell(made["grid_coord"][0], made["points"][0])
    assert torch.equal(found_cells, expected_cells)
    assert (found[:, 3:] - expected[:, 3:]).abs().max() <= 1e-6
    # The program then moves all coordinates, which the model does not read.
    moved = found[:, :3] - expected[:, :3]
    assert (moved - moved.mean(dim=0)).abs().max() <= TOLERANCE["coord"]
    feat = CASE.sampled(f"{part}feat", values[:, 3:])
    assert (feat - CASE.expected[f"{part}feat"]).abs().max() <= 1e-6


def test_every_stored_tensor_agrees(model):
    found = recorded(model.point_transformer_v3)
    with torch.no_grad():
        output = model(**CASE.voxels, text_embeds=CASE.expected["text"])
        plain = model(**CASE.voxels, text_embeds=CASE.expected["text"], with_none=False)
        found["point_feature"] = model.point_transformer_v3(**CASE.voxels).last_hidden_state
    # In the original the column of none is the first.
    scale = model.text_head.logit_scale.exp()
    found |= {"embedding_out": output.voxel_embeds, "logits": plain.logits[0] / scale}
    found["probability"] = output.logits[0].softmax(dim=-1).roll(1, dims=-1)
    errors = {name: CASE.error(name, found[name]) for name in CASE.manifest["outputs"] if name in found}
    assert len(errors) >= 20 and {"embedding_out", "logits", "probability", "dec.dec0.block0"} <= errors.keys()
    assert all(error <= TOLERANCE["logits" if n == "logits" else "features"] for n, error in errors.items()), errors
    assert float(scale) == pytest.approx(CASE.manifest["temperature"], rel=1e-6)


def test_points_get_the_stored_labels(model, monkeypatch):
    made = processor("", monkeypatch, **SETTINGS[""])(CASE.cloud())
    texts = CASE.expected["text"]
    with torch.no_grad():
        logits = model(**made, text_embeds=texts).logits[0]  # (1300, 5)
    scale = float(model.text_head.logit_scale.exp())
    assert CASE.error("heat", logits[:, :4] / scale) <= TOLERANCE["logits"]
    truth = _truth(CASE.cloud()["points"][:, 0])
    for name, scores in (("zero_logit", logits.roll(1, dims=-1)), ("panoptic", logits[:, :4])):
        labels = scores.argmax(dim=-1) + (name == "panoptic")
        expected = CASE.expected[f"prediction.{name}"].long()
        assert torch.equal(labels, expected)
        stored = CASE.manifest["results"][name]
        assert np.mean(_ious(labels.numpy(), truth)) == pytest.approx(stored["mean_iou"], abs=1e-6)
        assert (labels.numpy() == truth).mean() == pytest.approx(stored["accuracy"], abs=1e-6)


def _truth(x: np.ndarray, count: int = 4) -> np.ndarray:
    return np.clip(np.floor((x - x.min()) / (x.max() - x.min()) * (count + 1)), 0, count).astype(int)


def _ious(labels: np.ndarray, truth: np.ndarray) -> list[float]:
    pairs = [(labels == part, truth == part) for part in range(1, 5)]
    return [(own & true).sum() / (own | true).sum() for own, true in pairs if (own | true).any()]


def test_a_training_step_agrees(model):
    first, second = CASE.rows(), CASE.rows("benchmark.")
    clouds = [first[0][:400], second[0]]
    cells = [first[1][:400], second[1]]
    longest = max(map(len, clouds))
    masks = torch.zeros(2, 3, longest, dtype=torch.bool)
    for number, (cloud, count) in enumerate(zip(clouds, (3, 2), strict=True)):
        for mask in range(count):
            points = torch.arange(len(cloud))
            masks[number, mask, : len(cloud)] = ((points * (mask + 2)) // 7 + number) % 4 == mask % 4
    masks[0, 1] = False
    # The five texts are those of the masks, one after the other.
    texts = torch.cat([CASE.expected["train.text"], torch.zeros(1, 48)]).view(2, 3, 48)
    has_text = torch.tensor([[True, True, True], [True, True, False]])
    output = model.train()(clouds, text_embeds=texts, labels=masks, text_mask=has_text, grid_coord=cells)
    assert CASE.error("train.embedding_out", output.voxel_embeds) <= TOLERANCE["features"]
    assert abs(float(output.loss) - float(CASE.expected["train.loss"])) <= TOLERANCE["loss"]
    output.loss.backward()
    own = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    gradients = as_theirs(partial(convert_supervised_state_dict, fields=fields()), CASE.tensors(), own)
    stored = [key for key in CASE.expected if key.startswith("train.grad.")]
    assert len(stored) == 7
    for key in stored:
        ours, own = gradients[key.removeprefix("train.grad.")].reshape(CASE.expected[key].shape), CASE.expected[key]
        assert (ours - own).abs().max() <= 2e-4 + 1e-3 * own.abs().max(), key
