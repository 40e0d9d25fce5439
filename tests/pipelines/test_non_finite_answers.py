"""Every pipeline refuses NaN scores of a damaged model, and names the cloud."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from tests.errors import raises
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_detr3d import tiny_detr3d
from tests.tiny_encoders import clouds, tiny_model, tiny_scene_model
from tests.tiny_text_towers import LABELS, tiny_zero_shot_model

# Each with the damaged weight and the arguments of a call.
TASKS = {
    "point-cloud-classification": (tiny_model, "classifier.out.weight", {}),
    "point-cloud-feature-extraction": (tiny_model, "any2point.output_norm.weight", {}),
    "point-cloud-segmentation": (tiny_scene_model, "segmenter.out.weight", {}),
    "zero-shot-point-cloud-classification": (
        tiny_zero_shot_model,
        "alignment.projection.weight",
        {"candidate_labels": LABELS},
    ),
    "zero-shot-point-cloud-segmentation": (
        tiny_parts_by_name,
        "patchalign3d.projection.weight",
        {"candidate_labels": LABELS},
    ),
    "point-cloud-object-detection": (
        lambda: tiny_detr3d(Detr3DForPointCloudObjectDetection),
        "class_head.out.weight",
        {},
    ),
    "point-cloud-reconstruction": (lambda: tiny_autoencoder(None), "decoder.out.weight", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_non_finite_scores_are_refused_with_the_name_of_the_cloud(task, batch_size, tmp_path):
    make, damaged, arguments = TASKS[task]
    model = make().eval()
    boxes = {"center": False, "scale": None} if "detection" in task else {}
    processor = PointCloudProcessor(num_points=48, sampling="first", **boxes)
    answer = pipeline(task, model=model, feature_extractor=processor)
    paths = [tmp_path / "chair.npy", tmp_path / "lamp.npy"]
    for path, cloud in zip(paths, clouds(2).numpy(), strict=True):
        np.save(path, cloud)
    assert len(answer(paths, batch_size=batch_size, **arguments)) == 2
    with torch.no_grad():
        model.get_parameter(damaged).view(-1)[0] = torch.nan
    with raises(ValueError, naming="the cloud of 'chair'"):
        answer(paths, batch_size=batch_size, **arguments)
    with pytest.raises(ValueError, match="NaN or infinite scores for a cloud;"):
        answer(clouds(1)[0].numpy(), **arguments)
