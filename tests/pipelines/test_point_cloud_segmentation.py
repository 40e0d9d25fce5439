"""Labels for every point of files and arrays of any size."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import pipeline

from hf_any3d import GuidedAdapterConfig, PointCloudProcessor, read_point_cloud
from hf_any3d.data.blocks import split_into_blocks
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.pipelines import PointCloudSegmentationPipeline
from hf_any3d.tasks.steps import return_free_memory
from hf_any3d.visualization.viewer import label_colors
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_part_model, tiny_scene_model

PARTS = ["table top", "table legs", "lamp foot", "lamp pole", "lamp shade"]
POINTS = 48


def saved(directory, base, **processor):
    model = get_peft_model(base, GuidedAdapterConfig(r=4, init_weights=False)).eval()
    # Varied points and a head with clear answers, so that wrong labels and scores are detected.
    torch.manual_seed(0)
    for name in ("segmenter", "propagation"):
        for module in getattr(model.base_model.model, name).modules_to_save["default"].modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight)
    model.save_pretrained(directory)
    PointCloudProcessor(num_points=POINTS, **processor).save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parts")
    model = saved(directory, tiny_part_model(id2label=dict(enumerate(PARTS))))
    return pipeline("point-cloud-segmentation", model=str(directory)), model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes")
    model = saved(directory, tiny_scene_model(), scale=None, block_size=1.2)
    return pipeline("point-cloud-segmentation", model=str(directory)), model


def same(one, other):
    for name in ("points", "labels"):
        assert np.array_equal(one[name], other[name]), name
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=5e-5)
    assert [segment["label"] for segment in one["segments"]] == [segment["label"] for segment in other["segments"]]
    return True


@pytest.mark.slow
def test_pipeline_and_auto_class_open_the_saved_model(parts):
    segment, model = parts
    assert type(segment) is PointCloudSegmentationPipeline
    assert type(segment.model) is type(model.get_base_model()) and not segment.model.training


@torch.no_grad()
def test_cloud_of_the_models_size_gets_the_labels_of_the_model(parts):
    segment, model = parts
    cloud = clouds(1)[0].numpy()
    order = split_into_blocks(cloud, POINTS)[0]
    points = PointCloudProcessor(num_points=POINTS)(cloud[order])["points"]
    logits = model(points=points, category=torch.tensor([1])).logits[0, :, 2:].softmax(dim=-1)
    expected = torch.empty_like(logits)
    expected[torch.from_numpy(order)] = logits
    answer = segment(cloud, category="lamp")
    assert np.array_equal(answer["labels"], 2 + expected.argmax(dim=-1).numpy())
    np.testing.assert_allclose(answer["scores"], expected.amax(dim=-1).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 48, 49, 500])
def test_every_point_gets_a_label_for_any_size(parts, scenes, count):
    cloud = clouds(1, count)[0].numpy()
    for answer, allowed in ((parts[0](cloud, category=1), {2, 3, 4}), (scenes[0](cloud), {0, 1, 2})):
        assert answer["labels"].shape == answer["scores"].shape == (count,)
        assert set(answer["labels"]) <= allowed
        assert np.array_equal(answer["points"], cloud)
        assert (answer["scores"] > 0.3).all() and (answer["scores"] <= 1).all()


@pytest.mark.slow
def test_segments_are_masks_of_all_points_largest_first(scenes):
    answer = scenes[0](clouds(1, 300)[0])
    masks = np.stack([segment["mask"] for segment in answer["segments"]])
    assert (masks.sum(axis=0) == 1).all() and len(masks) > 1
    sizes = masks.sum(axis=1).tolist()
    assert sizes == sorted(sizes, reverse=True)
    for segment in answer["segments"]:
        number = int(segment["label"].removeprefix("LABEL_"))
        assert np.array_equal(segment["mask"], answer["labels"] == number)
        assert segment["score"] == pytest.approx(answer["scores"][segment["mask"]].mean())


def test_answers_are_written_as_ply_and_page(parts, tmp_path):
    cloud = clouds(1, 70)[0].numpy()
    np.save(tmp_path / "desk.npy", cloud)
    out = tmp_path / "out"
    answer = parts[0](tmp_path / "desk.npy", category="table", output_dir=out)
    assert sorted(file.name for file in out.iterdir()) == ["desk.html", "desk.ply"]
    written = read_point_cloud(out / "desk.ply")
    assert np.array_equal(written.labels, answer["labels"])
    np.testing.assert_allclose(written.points, cloud)
    np.testing.assert_allclose(written.colors, label_colors(5)[answer["labels"]], atol=1 / 255)
    assert answer["segments"][0]["label"] in (out / "desk.html").read_text(encoding="utf-8")


def test_answers_are_written_as_colored_obj_on_request(parts, tmp_path):
    cloud = clouds(1, 70)[0].numpy()
    answer = parts[0]({"points": cloud, "label": 0}, output_dir=tmp_path, formats="obj")
    assert [file.name for file in tmp_path.iterdir()] == ["cloud-0.obj"]
    written = read_point_cloud(tmp_path / "cloud-0.obj")
    np.testing.assert_allclose(written.colors, label_colors(5)[answer["labels"]], atol=1e-5)
    np.testing.assert_allclose(written.points, cloud)


def test_invalid_arguments_are_refused(parts, scenes, tmp_path):
    cloud = clouds(1)[0]
    with pytest.raises(ValueError, match="category is missing .* one of table, lamp"):
        parts[0](cloud)
    for category in ("chair", 2):
        with pytest.raises(ValueError, match="expected one of table, lamp, its number"):
            parts[0](cloud, category=category)
    with pytest.raises(ValueError, match="this model has no categories"):
        scenes[0](cloud, category="table")
    with raises(TypeError, naming="top_k"):
        scenes[0](cloud, top_k=3)
    with raises(ValueError, naming="max_points is 0"):
        scenes[0](cloud, max_points=0)
    assert len(scenes[0](cloud, max_points=1)["labels"]) == len(cloud)
    with raises(ValueError, naming="'stl'; expected one of ply"):
        scenes[0](cloud, output_dir=tmp_path, formats=["stl"])


def test_sums_on_disk_give_the_same_answer(scenes):
    cloud = clouds(1, 300)[0]
    expected = scenes[0](cloud)
    scenes[0].sums_in_memory = 0
    assert same(scenes[0](cloud, batch_size=4), expected)
    del scenes[0].sums_in_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_freed_memory_in_pieces_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [np.ones(64 << 10, np.uint8) for _ in range(2000)]
    # The last one stays, and with it what lies before it.
    pieces = pieces[-1:]
    before = resident()
    return_free_memory()
    assert before - resident() > 100e6


@pytest.mark.slow
def test_thinned_clouds_give_every_point_the_label_of_the_nearest_kept_one(scenes):
    cloud = clouds(1, 400)[0].numpy()
    answer = scenes[0](cloud, max_points=100)
    kept = np.sort(np.random.default_rng(0).choice(400, 100, replace=False))
    alone = scenes[0](cloud[kept])
    assert np.array_equal(answer["points"], cloud) and np.array_equal(answer["labels"][kept], alone["labels"])
    nearest = np.linalg.norm(cloud[:, None] - cloud[kept], axis=2).argmin(axis=1)
    assert np.array_equal(answer["labels"], alone["labels"][nearest])
    assert same(scenes[0](cloud, max_points=400), scenes[0](cloud))


@pytest.mark.parametrize(("up_axis", "streams"), [("x", False), ("z", True)], ids=["one cloud", "several"])
def test_blocks_of_a_cloud_with_another_up_axis_are_those_of_the_turned_cloud(scenes, up_axis, streams):
    segment, _ = scenes
    # Longer than a block in all directions, and different in each.
    cloud = (np.random.default_rng(3).uniform(size=(200, 3)) * [2.5, 1.5, 2]).astype(np.float32)
    turned = turn_up_axis(cloud, up_axis, segment.feature_extractor.up_axis)
    found, expected = (
        segment([points, points], up_axis=axis)[0] if streams else segment(points, up_axis=axis)
        for points, axis in ((cloud, up_axis), (turned, None))
    )
    assert len(np.unique(expected["labels"])) > 1
    assert np.array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-6)
    assert np.array_equal(found["points"], cloud)
