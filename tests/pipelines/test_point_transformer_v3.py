"""Point Transformer V3 in the pipelines: features, classes and segments of clouds of any size."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointTransformerV3Processor
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from hf_any3d.pipelines import scene_features
from tests.common.case import spread_weights
from tests.errors import raises
from tests.tiny_ptv3 import tiny_ptv3


def room(points: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((points, 6), dtype=np.float32) * [4, 3, 2, 1, 1, 1]


def saved(model_class, folder, **settings) -> str:
    model = tiny_ptv3(model_class)
    spread_weights(model)
    model.save_pretrained(folder)
    PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.1, **settings).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_features_of_voxels_are_those_of_the_model(batch_size, tmp_path):
    extract = pipeline("point-cloud-feature-extraction", model=saved(PointTransformerV3Model, tmp_path))
    clouds = [room(300), room(200, 1), room(400, 2)]
    found = extract(clouds, batch_size=batch_size)
    for cloud, answer in zip(clouds, found, strict=True):
        with torch.no_grad():
            expected = extract.model(**extract.feature_extractor(cloud))
        np.testing.assert_allclose(answer["pooled"], expected.pooler_output[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer["tokens"], expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answer["centers"], expected.coord, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_classes_and_segments_of_raw_clouds(tmp_path):
    classify = pipeline(
        "point-cloud-classification", model=saved(PointTransformerV3ForPointCloudClassification, tmp_path / "c")
    )
    assert len(classify(room(300), top_k=None)) == 3
    folder = saved(PointTransformerV3ForPointCloudSegmentation, tmp_path / "s")
    segment, cloud = pipeline("point-cloud-segmentation", model=folder), room(500)
    with torch.no_grad():
        logits = segment.model(**segment.feature_extractor(cloud)).logits[0]
    assert np.array_equal(segment(cloud)["labels"], logits.argmax(dim=-1))


@pytest.mark.slow
def test_a_scene_is_segmented_in_blocks_of_any_batch(tmp_path):
    folder = saved(PointTransformerV3ForPointCloudSegmentation, tmp_path, num_points=120, block_size=2.0)
    segment, cloud = pipeline("point-cloud-segmentation", model=folder), room(700)
    one, several = segment(cloud), segment(cloud, batch_size=3)
    assert one["labels"].shape == (700,) and len(np.unique(one["labels"])) > 1
    np.testing.assert_allclose(one["scores"], several["scores"], atol=1e-4)


@pytest.mark.slow
def test_features_of_a_scene_go_to_a_file_column_by_column(tmp_path):
    model = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation)
    spread_weights(model)
    processor, cloud = PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.1), room(900)
    whole = scene_features(model, processor, cloud, tmp_path / "whole.npy")
    with torch.no_grad():
        expected = model.point_transformer_v3(**processor(cloud), output_point_features=True).point_features[0]
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    # With a margin as wide as the scene, every column is the whole scene.
    wide = scene_features(model, processor, cloud, tmp_path / "wide.npy", block_size=2.0, margin=9.0)
    np.testing.assert_allclose(wide, whole, rtol=1e-4, atol=1e-5)
    parts = scene_features(model, processor, cloud, tmp_path / "parts.npy", block_size=2.0, margin=0.3, levels=1)
    assert parts.shape == (900, 24) and np.isfinite(parts).all() and isinstance(parts, np.memmap)
    for settings, message in (
        ({"block_size": 3.0}, "a column has .* points with its margin; expected at most num_points=50"),
    ):
        small = PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.1, num_points=50)
        with pytest.raises(ValueError, match=message):
            scene_features(model, small, cloud, tmp_path / "none.npy", **settings)
    scaled = PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.1, scale="unit_sphere")
    with raises(ValueError, naming="scale='unit_sphere', which would differ from"):
        scene_features(model, scaled, cloud, tmp_path / "none.npy", block_size=2.0)
    assert scene_features(model, scaled, cloud, tmp_path / "whole.npy").shape == whole.shape
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts.npy", "whole.npy", "wide.npy"]
