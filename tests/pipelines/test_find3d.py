"""Find3D in the pipeline and on the command line: parts by name, and points without any."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import AutoModelForZeroShotPointCloudSegmentation, PointTransformerV3Processor
from hf_any3d.processing.voxels import VOXEL_PRESETS
from tests.tiny_ptv3 import tiny_find3d

LABELS = ["seat", "leg", "back"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a tiny Find3D, aligned with a tiny SigLIP, and its processor, which draws few points."""
    directory = tmp_path_factory.mktemp("find3d")
    tiny_find3d().save_pretrained(directory)
    PointTransformerV3Processor(**VOXEL_PRESETS["find3d"] | {"drawn_points": 300}).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def segment(saved):
    return pipeline("zero-shot-point-cloud-segmentation", model=saved)


def cloud(points: int = 400) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    normals = generator.normal(size=(points, 3))
    return {
        "points": generator.normal(size=(points, 3)) * [1, 0.3, 0.5] + 7,
        "colors": generator.random((points, 3)),
        "normals": normals / np.linalg.norm(normals, axis=1, keepdims=True),
    }


def test_every_point_gets_a_label_or_none(segment, saved):
    row = cloud()
    answer = segment(row, candidate_labels=LABELS)
    model = AutoModelForZeroShotPointCloudSegmentation.from_pretrained(saved)
    inputs = PointTransformerV3Processor.from_pretrained(saved)(row)
    texts = torch.nn.functional.normalize(model.text_tower.embed(LABELS), dim=-1)
    with torch.no_grad():
        embeds = model(**inputs).voxel_embeds
        scores = model.text_head.logit_scale.exp() * embeds @ texts.T
    expected = torch.cat([scores, torch.zeros(len(scores), 1)], dim=1).softmax(dim=-1)[inputs["inverse"][0]]
    np.testing.assert_array_equal(answer["labels"], expected.argmax(dim=-1).numpy())
    np.testing.assert_allclose(answer["scores"], expected.amax(dim=-1).numpy(), atol=1e-5)
    names = [*LABELS, "none"]
    assert {part["label"] for part in answer["segments"]} == {names[number] for number in np.unique(answer["labels"])}
    assert "none" in {part["label"] for part in answer["segments"]} and len(answer["segments"]) > 1
    without = segment(row, candidate_labels=LABELS, none_label=False)["labels"]
    named = answer["labels"] < 3
    assert without.max() < 3 and (without[named] == answer["labels"][named]).all()


def test_of_larger_clouds_some_points_are_drawn_and_the_others_get_the_nearest_label(saved, segment):
    row = cloud(1000)
    processor = segment.feature_extractor
    made = processor(row)
    assert made["grid_coord"].shape[1] <= 300 and made["inverse"].shape == (1, 1000)
    places = made["points"][0, :, :3]
    # x, y and z of the model are -x, z and y of the file.
    moved = torch.from_numpy(row["points"]).float()[:, [0, 2, 1]] * torch.tensor([-1.0, 1, 1])
    size = (moved - moved.mean(dim=0)).abs().max()
    moved = (moved - moved.mean(dim=0)) * 0.75 / size
    moved -= torch.tensor([*(moved.amax(dim=0) + moved.amin(dim=0))[:2] / 2, moved[:, 2].min()])
    distance = torch.cdist(moved, places, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.gather(1, made["inverse"][0][:, None])[:, 0]
    assert (found - distance.amin(dim=1)).abs().max() < 1e-5 and (found < 1e-5).sum() == len(places)
    assert len(segment(row, candidate_labels=LABELS)["labels"]) == 1000
    # Clouds beyond the limit are thinned out, as an object is scaled as a whole.
    small = pipeline("zero-shot-point-cloud-segmentation", model=saved)
    small.feature_extractor.num_points = 500
    assert len(small(row, candidate_labels=LABELS)["labels"]) == 1000


def test_the_category_is_part_of_the_texts(segment):
    found = segment.label_embeddings(("Leg!",), category="chair")
    torch.testing.assert_close(found, segment.model.text_tower.embed(["leg of a chair"]))


def test_wrong_arguments_are_refused(segment):
    for arguments, message in (
        ({"candidate_labels": ["seat", "None"]}, "candidate_labels has 'none', which points without a label get"),
        ({"candidate_labels": LABELS, "patch_to_point": "nearest"}, "patch_to_point='nearest'; expected None"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(cloud(), **arguments)
    made = pipeline("zero-shot-point-cloud-segmentation", model=segment.model, none_label=False,
                    feature_extractor=segment.feature_extractor)  # fmt: skip
    assert made(cloud(), candidate_labels=["none", "seat"])["labels"].max() < 2
    assert "none" in segment.label_names(["seat"]) and segment.label_names("None, seat", False) == ("None", "seat")
    plain = {name: values for name, values in cloud().items() if name != "normals"}
    with pytest.raises(ValueError, match="no normals, but the model was never trained without"):
        segment(plain, candidate_labels=LABELS)
