"""Scans segmented in views and fragments: as the released procedure does, and on the command line."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointTransformerV3ForPointCloudSegmentation, PointTransformerV3Processor, read_point_cloud
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.processing.voxels import VOXEL_PRESETS
from hf_any3d.tasks.segmentation.steps import vote
from tests.errors import raises
from tests.modeling.point_transformer_v3.test_parity_supervised import build
from tests.modeling.ptv3_case import SupervisedCase
from tests.tiny_ptv3 import tiny_ptv3


def street() -> tuple[SupervisedCase, PointCloudData]:
    case = SupervisedCase("ptv1_nuscenes")
    raw = case.raw[0]
    return case, PointCloudData(raw["coord"], intensity=raw["strength"])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["full", "branch"])
def test_votes_of_every_fragment_and_the_class_of_every_point_agree(rule, monkeypatch):
    case, cloud = street()
    model, stored = build(case, rule), case.expected
    kept, inverse = stored["selected"].long().numpy(), stored["inverse"].long().numpy()
    processor = PointTransformerV3Processor(**VOXEL_PRESETS["nuscenes"] | {"intensity_range": None})
    processor.views = [[0.9, 0.0], [1.0, 0.0], [1.05, 180.0]]
    # The released program draws which point stands for a cell, and the order within a cell is that of its sort.
    monkeypatch.setattr(processor, "first_sample", lambda cloud: (kept, inverse))
    made = list(processor.fragments(cloud))
    parts = stored["fragment_index"].long().split(stored["fragment_lengths"].tolist())
    assert len(made) == len(parts) == int(stored["fragments_per_augmentation"].sum())
    for (index, inputs), part in zip(made, parts, strict=True):
        # One point of each cell, and the same cells as in the stored fragment.
        assert inputs["grid_coord"].shape[1] == len(part) == len(np.unique(index))
    draws = iter(parts)
    views = np.repeat(processor.views, stored["fragments_per_augmentation"], axis=0)  # of each fragment

    def as_stored(cloud):
        channels = np.concatenate([cloud.points[kept], cloud.intensity[kept, None]], axis=1).astype(np.float64)
        for (_, inputs), (scale, degrees) in zip(made, views, strict=True):
            part = next(draws).numpy()
            own = channels[part].copy()
            own[:, :3] *= scale
            own[:, :2] *= -1 if degrees else 1
            cells = np.floor(own[:, :3] / processor.grid_size).astype(int)
            cells -= cells.min(axis=0)
            points = torch.from_numpy(own.astype(np.float32))[None]
            assert {tuple(row) for row in cells} == {tuple(row) for row in inputs["grid_coord"][0].tolist()}
            yield kept[part], {"points": points, "grid_coord": torch.from_numpy(cells)[None]}

    monkeypatch.setattr(processor, "fragments", as_stored)
    with torch.no_grad():
        answer = vote(model, processor, cloud)
    counts = np.zeros(len(kept))
    for part in parts:
        np.add.at(counts, part.numpy(), 1)
    votes = answer.exp() * torch.from_numpy(counts)[inverse][:, None]
    of_kept = torch.zeros(len(kept), votes.shape[1], dtype=votes.dtype).index_copy(0, torch.from_numpy(inverse), votes)
    assert (of_kept[::4].float() - stored[f"{rule}.votes"]).abs().max() <= case.manifest["tolerance"]["votes"]
    first, second = votes.topk(2, dim=1).values.unbind(dim=1)
    is_clear = first - second >= 1e-3
    assert torch.equal(answer.argmax(dim=1)[is_clear], stored[f"{rule}.prediction"].long()[is_clear])


def test_fragments_hold_every_point_and_each_cell_once_in_every_view():
    rng = np.random.default_rng(0)
    cloud = PointCloudData(rng.random((400, 3)), rng.random((400, 3)), np.tile([1.0, 0, 0], (400, 1)))
    processor = PointTransformerV3Processor(**VOXEL_PRESETS["scannet"] | {"grid_size": 0.25}, color_range="signed")
    seen, normals = np.zeros(400, int), set()
    for index, inputs in processor.fragments(cloud):
        cells = inputs["grid_coord"][0]
        assert len(torch.unique(cells, dim=0)) == len(cells) == len(index)
        seen[index] += 1
        assert torch.allclose(inputs["points"][0, :, 3:6], torch.from_numpy(2 * cloud.colors[index] - 1))
        normals |= {tuple(row) for row in inputs["points"][0, :, 6:].int().tolist()}
    assert seen.min() >= 13 and normals == {(1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0)}


@pytest.fixture
def room(tmp_path):
    """A tiny room model with votes, saved, and a room with normals."""
    model = tiny_ptv3(
        PointTransformerV3ForPointCloudSegmentation,
        in_channels=9,
        grid_size=0.1,
        stem="convolution",
        stage_norm="batch",
        pooling="serialized",
        reads_coordinates=False,
        block_rule="branch",
        id2label={0: "wall", 1: "floor", 2: "chair"},
        label_colors=["#ff0000", "#00ff00", "#0000ff"],
    )
    model.save_pretrained(tmp_path / "room-model")
    views = {"views": [[1, 0], [1.05, 90]], "grid_size": 0.1}
    PointTransformerV3Processor(**VOXEL_PRESETS["scannet"] | views).save_pretrained(tmp_path / "room-model")
    rng = np.random.default_rng(0)
    cloud = PointCloudData(rng.random((300, 3)), rng.random((300, 3)), np.tile([0, 0, 1.0], (300, 1)))
    write_point_cloud(tmp_path / "room.ply", cloud)
    return tmp_path


@pytest.mark.slow
def test_the_pipeline_votes_alone_and_in_lists_and_colors_as_the_benchmark(room):
    segment = pipeline("point-cloud-segmentation", model=str(room / "room-model"))
    once = segment(str(room / "room.ply"))
    voted = segment(str(room / "room.ply"), votes=True, output_dir=room / "out")
    assert {part["label"] for part in voted["segments"]} <= {"wall", "floor", "chair"}
    assert np.abs(once["scores"] - voted["scores"]).max() > 1e-6 and len(voted["labels"]) == 300
    for size in (1, 3):
        several = segment([str(room / "room.ply")] * 2, votes=True, batch_size=size)
        assert all(np.array_equal(answer["labels"], voted["labels"]) for answer in several)
    written = read_point_cloud(room / "out" / "room.ply")
    assert np.array_equal(written.colors, np.eye(3)[voted["labels"]])
    assert "#0000ff" in (room / "out" / "room.html").read_text()
    segment.feature_extractor.views = None
    with raises(ValueError, naming="votes=True: the processor has no"):
        segment(str(room / "room.ply"), votes=True)


@pytest.mark.slow
def test_large_scans_are_voted_on_in_blocks_of_bounded_size(room):
    segment = pipeline("point-cloud-segmentation", model=str(room / "room-model"))
    segment.feature_extractor.num_points = 120
    seen = []
    inner = segment.model.forward
    segment.model.forward = lambda **inputs: seen.append(inputs["points"].shape[1]) or inner(**inputs)
    answer = segment(str(room / "room.ply"), votes=True)
    assert len(answer["labels"]) == 300 and max(seen) <= 120


def test_what_a_model_was_never_trained_without_is_an_error(room):
    segment = pipeline("point-cloud-segmentation", model=str(room / "room-model"))
    cloud = np.random.default_rng(0).random((50, 3))
    with pytest.raises(ValueError, match="no colors, but the model was never trained without"):
        segment({"points": cloud, "normals": cloud})
    with pytest.raises(ValueError, match="no normals, but the model was never trained without"):
        segment({"points": cloud, "colors": cloud})
    streets = PointTransformerV3Processor(**VOXEL_PRESETS["nuscenes"])
    with pytest.raises(ValueError, match="no intensity; the processor needs them"):
        streets(cloud)
    with pytest.raises(ValueError, match="intensity from .* expected the sensor's bytes, 0 to 255"):
        streets({"points": cloud, "intensity": cloud[:, 0]})


def test_intensity_comes_from_arrays_rows_and_files(tmp_path):
    rng = np.random.default_rng(0)
    points, intensity = rng.random((40, 3)).astype(np.float32), rng.integers(0, 256, 40)
    streets = PointTransformerV3Processor(**VOXEL_PRESETS["nuscenes"])
    np.savez(tmp_path / "street.npz", points=points, intensity=intensity)
    rows = "\n".join(" ".join(map(str, (*point, value))) for point, value in zip(points, intensity, strict=True))
    header = "ply\nformat ascii 1.0\nelement vertex 40\n" + "".join(
        f"property float {name}\n" for name in ("x", "y", "z", "intensity")
    )
    (tmp_path / "street.ply").write_text(f"{header}end_header\n{rows}\n")
    given = [
        np.concatenate([points, intensity[:, None]], axis=1),
        {"points": points, "intensity": intensity},
        tmp_path / "street.npz",
        tmp_path / "street.ply",
    ]
    found = [streets(cloud) for cloud in given]
    assert found[0]["points"].shape[2] == 4
    assert all(torch.equal(one["points"], found[0]["points"]) for one in found)
    assert torch.isin((found[0]["points"][0, :, 3] * 255).round().int(), torch.from_numpy(intensity).int()).all()
    waymo = PointTransformerV3Processor(**VOXEL_PRESETS["waymo"])
    far = waymo({"points": 100 * points, "intensity": intensity})["points"][0]
    assert far[:, 0].max() == 75.2 and far[:, 2].max() == 2 and far[:, 3].max() <= 1
