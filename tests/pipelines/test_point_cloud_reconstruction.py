"""Codes and reconstructions of files and arrays."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import AutoModelForPointCloudReconstruction, PointCloudProcessor, read_point_cloud
from hf_any3d.modeling.point_ops import chamfer_distance, reconstruction_scores
from hf_any3d.pipelines import PointCloudReconstructionPipeline
from tests.errors import raises
from tests.tiny_autoencoders import SMALL_AUTOENCODER, tiny_autoencoder
from tests.tiny_encoders import clouds

POINTS = 48
GROUPS, GROUP_SIZE = SMALL_AUTOENCODER["num_groups"], SMALL_AUTOENCODER["group_size"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("autoencoder")
    model = tiny_autoencoder(None)
    model.save_pretrained(directory)
    PointCloudProcessor(num_points=POINTS).save_pretrained(directory)
    return str(directory), model


@pytest.fixture(scope="module")
def reconstruct(saved):
    return pipeline("point-cloud-reconstruction", model=saved[0])


def test_pipeline_and_auto_class_open_the_saved_autoencoder(saved, reconstruct):
    assert type(reconstruct) is PointCloudReconstructionPipeline and not reconstruct.model.training
    assert type(AutoModelForPointCloudReconstruction.from_pretrained(saved[0])) is type(saved[1])


@torch.no_grad()
def test_answer_equals_the_model_with_scores(saved, reconstruct):
    cloud = clouds(1, 70)[0].numpy()
    answer = reconstruct(cloud)
    points = PointCloudProcessor(num_points=POINTS)(cloud)["points"]
    output = saved[1](points=points)
    for name, expected in (
        ("points", points),
        ("reconstruction", output.whole_fine),
        ("coarse", output.whole_coarse),
        ("centers", output.centers),
        ("token_ids", output.token_ids),
    ):
        np.testing.assert_allclose(answer[name], expected[0], atol=1e-6, err_msg=name)
    assert answer["reconstruction"].shape == (GROUPS * GROUP_SIZE, 3)
    assert answer["coarse"].shape == (GROUPS * GROUP_SIZE // 4, 3)
    assert answer["token_ids"].shape == (GROUPS,) and answer["token_ids"].dtype == np.int64
    for norm in ("l1", "l2"):
        expected = float(chamfer_distance(output.whole_fine, points, norm))
        assert answer[f"chamfer_{norm}"] == pytest.approx(expected, rel=1e-4)
    wide = reconstruct(cloud, threshold=0.3)
    (expected,) = reconstruction_scores(output.whole_fine, points, 0.3)["f_score"].tolist()
    assert wide["f_score"] == pytest.approx(expected, abs=1e-4)
    assert wide["f_score"] > answer["f_score"]


@pytest.mark.slow
def test_reconstructions_are_written_in_patch_colors_and_shown(reconstruct, tmp_path):
    cloud = clouds(1, 70)[0].numpy()
    np.save(tmp_path / "desk.npy", cloud)
    out = tmp_path / "out"
    answer = reconstruct(tmp_path / "desk.npy", output_dir=out, formats=["ply", "obj", "npz", "html", "png"])
    assert sorted(file.suffix for file in out.iterdir()) == [".html", ".npz", ".obj", ".ply", ".png"]
    for kind in ("ply", "npz"):
        written = read_point_cloud(out / f"desk.{kind}")
        np.testing.assert_allclose(written.points, answer["reconstruction"])
        assert np.array_equal(written.labels.reshape(GROUPS, GROUP_SIZE), answer["token_ids"][:, None].repeat(8, 1))
    colors = read_point_cloud(out / "desk.obj").colors.reshape(GROUPS, GROUP_SIZE, 3)
    assert (colors == colors[:, :1]).all() and len(np.unique(colors[:, 0], axis=0)) == GROUPS
    assert "desk" in (out / "desk.html").read_text(encoding="utf-8")
    assert (out / "desk.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_written_in_folders_that_are_made_as_needed(reconstruct, tmp_path):
    folder = tmp_path / "results" / "of" / "today"
    for cloud in clouds(2, 60):
        reconstruct(cloud, output_dir=folder, formats=["ply"])
    assert [file.name for file in folder.iterdir()] == ["cloud-0.ply"]


def test_invalid_arguments_are_refused(reconstruct):
    cloud = clouds(1)[0]
    with raises(ValueError, naming="'stl'; expected one of ply"):
        reconstruct(cloud, formats="stl")
    with raises(TypeError, naming="top_k"):
        reconstruct(cloud, top_k=3)


def test_non_finite_scores_are_refused_even_with_finite_points(saved):
    reconstruct = pipeline("point-cloud-reconstruction", model=saved[0])
    with torch.no_grad():
        reconstruct.model.get_parameter("decoder.out.weight").mul_(1e25)  # squares overflow float32
    with pytest.raises(ValueError, match="NaN or infinite scores for a cloud"):
        reconstruct(clouds(1, 70)[0].numpy())
