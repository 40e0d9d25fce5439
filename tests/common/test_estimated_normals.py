"""Clouds without normals, and models that read them: a refusal that names the option, which then has its effect."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoFeatureExtractor, pipeline

from hf_any3d import PointCloudProcessor, PointTransformerV3Processor
from hf_any3d.array_segmentation import segment
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.normals import with_normals
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.processing.voxels import VOXEL_PRESETS
from hf_any3d.serving import ServeLimits
from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service
from tests.cli.conftest import run
from tests.errors import raises
from tests.extensions import HAS_SURVEY
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_detr3d import BOX_FRAME, tiny_detr3d
from tests.tiny_encoders import tiny_model, tiny_scene_model, with_large_logits
from tests.tiny_ptv3 import tiny_find3d, tiny_ptv3
from tests.tiny_text_towers import tiny_zero_shot_model

SIZE = 400
POINTS = np.random.default_rng(0).normal(size=(SIZE, 3)).astype(np.float32) * np.float32([2, 1, 0.5])
COLORS = np.random.default_rng(1).random((SIZE, 3)).astype(np.float32)
CLOUD = {"points": POINTS, "colors": COLORS}
NORMALS = ("xyz", "normals")


class Reader(NamedTuple):
    """A model that reads normals, and how it is asked."""

    task: str
    command: str
    route: str
    model: Callable[[], Any]
    processor: Any
    asked: dict[str, Any] = {}
    words: tuple[str, ...] = ()


READERS = {
    "classifier": Reader(
        "point-cloud-classification",
        "predict",
        "/v1/classify",
        lambda: with_large_logits(tiny_model(in_channels=6)),
        PointCloudProcessor(num_points=64, features=NORMALS),
    ),
    "zero-shot": Reader(
        "zero-shot-point-cloud-classification",
        "predict",
        "/v1/classify",
        lambda: tiny_zero_shot_model(in_channels=6),
        PointCloudProcessor(num_points=64, features=NORMALS),
        {"candidate_labels": ["chair", "lamp"]},
        ("--labels", "chair,lamp"),
    ),
    "features": Reader(
        "point-cloud-feature-extraction",
        "features",
        "/v1/features",
        lambda: tiny_model(in_channels=6),
        PointCloudProcessor(num_points=64, features=NORMALS),
    ),
    "scene in blocks": Reader(
        "point-cloud-segmentation",
        "segment",
        "/v1/segment",
        lambda: tiny_scene_model(in_channels=6),
        PointCloudProcessor(num_points=64, features=NORMALS, scale=None, block_size=4.0, center="ground", up_axis="z"),
    ),
    "voxels": Reader(
        "point-cloud-segmentation",
        "segment",
        "/v1/segment",
        lambda: tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, in_channels=9),
        PointTransformerV3Processor(grid_size=0.1),
    ),
    "parts by name": Reader(
        "zero-shot-point-cloud-segmentation",
        "segment",
        "/v1/segment",
        tiny_find3d,
        PointTransformerV3Processor(**VOXEL_PRESETS["find3d"]),
        {"candidate_labels": ["seat", "leg"]},
        ("--labels", "seat,leg"),
    ),
    "autoencoder": Reader(
        "point-cloud-reconstruction",
        "reconstruct",
        "",
        lambda: tiny_autoencoder(None, in_channels=6),
        PointCloudProcessor(num_points=64, features=NORMALS),
    ),
    "boxes": Reader(
        "point-cloud-object-detection",
        "detect",
        "/v1/detect",
        lambda: tiny_detr3d(Detr3DForPointCloudObjectDetection, in_channels=6),
        PointCloudProcessor(num_points=64, features=NORMALS, **BOX_FRAME),
    ),
}
if HAS_SURVEY:
    from hf_any3d import LocalFeaturesForPointCloudSegmentation, LocalFeaturesProcessor
    from tests.survey.tiny_local_features import tiny_local_features

    TILES = LocalFeaturesProcessor(num_points=64, features=NORMALS, unit="diagonal")
    READERS["tiles"] = Reader(
        "point-cloud-segmentation",
        "segment",
        "/v1/segment",
        lambda: tiny_local_features(LocalFeaturesForPointCloudSegmentation, in_channels=3 + len(TILES.names())),
        TILES,
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A function from the name of a model to its directory."""

    @cache
    def place(name: str) -> Path:
        folder = tmp_path_factory.mktemp("reader")
        torch.manual_seed(0)
        READERS[name].model().save_pretrained(folder)
        READERS[name].processor.save_pretrained(folder)
        return folder

    return place


@pytest.fixture(scope="module")
def pipes(places):
    """A function from the name of a model to its pipeline."""
    return cache(lambda name: pipeline(READERS[name].task, model=str(places(name))))


def numbers(answer: Any) -> list[float]:
    """Return all numbers of an answer."""
    if isinstance(answer, dict):
        return [number for value in answer.values() for number in numbers(value)]
    if isinstance(answer, (list, tuple)):
        return [number for value in answer for number in numbers(value)]
    if isinstance(answer, (np.ndarray, torch.Tensor, float, int)):
        return np.asarray(answer, np.float64).reshape(-1).tolist()
    return []


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore:.*have fewer than num_points", "ignore:.*meters")
class TestEveryModelThatReadsNormals:
    """Each model at each door."""

    def test_its_processor(self, name, places, tmp_path):
        processor = AutoFeatureExtractor.from_pretrained(places(name))
        with raises(ValueError, naming="--estimate-normals (estimate_normals=True) estimates normals from neighbors"):
            processor(CLOUD)
        with pytest.warns(UserWarning, match="no normals: estimated from 24 neighbors"):
            estimated = processor(CLOUD, estimate_normals=True)["points"]
        is_scene = processor.scale is None or processor.block_size is not None
        whole = with_normals_quietly(PointCloudData(**CLOUD), processor.up_axis if is_scene else None)
        assert torch.equal(estimated, processor(whole)["points"])
        processor.with_estimated_normals()
        processor.save_pretrained(tmp_path)
        opened = AutoFeatureExtractor.from_pretrained(tmp_path)
        with pytest.warns(UserWarning, match="no normals: estimated"):
            assert torch.equal(opened(CLOUD)["points"], estimated)
        with raises(ValueError, naming="no normals"):
            opened(CLOUD, estimate_normals=False)

    def test_its_pipeline(self, name, pipes):
        pipe, asked = pipes(name), READERS[name].asked
        with raises(ValueError, naming="--estimate-normals"):
            pipe(CLOUD, **asked)
        with pytest.warns(UserWarning, match="no normals: estimated from 24 neighbors"):
            answer = pipe(CLOUD, estimate_normals=True, **asked)
        processor = pipe.feature_extractor
        is_scene = processor.scale is None or processor.block_size is not None
        # Neighbors are those in the whole cloud, however it is cut.
        whole = with_normals_quietly(PointCloudData(**CLOUD), processor.up_axis if is_scene else None)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*no normals")
            np.testing.assert_allclose(numbers(answer), numbers(pipe(whole, **asked)), rtol=1e-5, atol=1e-6)

    def test_its_command(self, name, places, tmp_path):
        file = tmp_path / "scan.ply"
        write_point_cloud(file, PointCloudData(**CLOUD))
        own = READERS[name]
        words = [own.command, file, "--model", places(name), *own.words, "--json"]
        refused = run(*words)
        assert refused.code == 1 and refused.err.count("\n") == 1, refused.err
        assert "no normals" in refused.err and "--estimate-normals" in refused.err
        answered = run(*words, "--estimate-normals")
        assert answered.code == 0, answered.err
        (row,) = json.loads(answered.out)
        assert any("no normals: estimated" in text for text in row["warnings"]), row
        assert "no normals: estimated" in answered.err

    def test_its_service(self, name, pipes):
        if not READERS[name].route:
            pytest.skip("has no route")
        service = Service("tiny", READERS[name].task, pipes(name), ServeLimits())
        words = {"labels": READERS[name].asked["candidate_labels"]} if READERS[name].asked else {}
        body = {"point_clouds": [{"points": POINTS.tolist(), "colors": COLORS.tolist()}], **words}
        with TestClient(create_app(service)) as client:
            refused = client.post(READERS[name].route, json=body)
            assert refused.status_code == 422 and "estimate_normals" in refused.text, refused.text
            answered = client.post(READERS[name].route, json=body | {"estimate_normals": True})
        assert answered.status_code == 200, answered.text
        assert answered.json()["answers"][0]["normals"] == "estimated"


def with_normals_quietly(cloud: PointCloudData, up_axis: str | None) -> PointCloudData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return with_normals(cloud, up_axis)


def test_arrays_of_other_programs(pipes):
    with raises(ValueError, naming="--estimate-normals"):
        segment(POINTS, COLORS, model=pipes("voxels"))
    with pytest.warns(UserWarning, match="no normals: estimated"):
        assert len(segment(POINTS, COLORS, model=pipes("voxels"), estimate_normals=True).labels) == SIZE


def test_a_model_that_reads_no_normals_refuses_the_option():
    with raises(ValueError, naming="estimate_normals=True"):
        PointCloudProcessor(estimate_normals=True)
    with raises(ValueError, naming="estimate_normals=True"):
        PointCloudProcessor()(POINTS, estimate_normals=True)
    assert "estimate_normals" not in PointCloudProcessor(features=NORMALS).to_dict()
