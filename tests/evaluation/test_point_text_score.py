"""Scores of generated shapes and the texts they were made for."""

import numpy as np
import pytest
import torch

from hf_any3d import PointCloudProcessor
from hf_any3d.evaluation.point_text_score import point_text_scores
from tests.tiny_text_towers import tiny_zero_shot_model


def test_scores_are_cosines_of_each_cloud_with_its_text():
    model, processor = tiny_zero_shot_model(), PointCloudProcessor(num_points=48)
    clouds = list(np.random.default_rng(0).normal(size=(3, 60, 3)).astype("float32"))
    with torch.no_grad():
        points = model.get_point_features(processor(clouds)["points"])
        cosines = (points @ model.encode_labels(["a cup", "a chair"], templates=["{}"]).T).numpy()
    best = cosines.argmax(axis=1)
    texts = [["a cup", "a chair"][number] for number in (best[0], best[1], 1 - best[2])]
    found = point_text_scores(model, processor, clouds, texts, batch_size=2)
    expected = 100 * np.array([cosines[0, best[0]], cosines[1, best[1]], cosines[2, 1 - best[2]]]).clip(min=0)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-3)
    assert found["score"] == pytest.approx(expected.mean(), abs=1e-3)
    compared = [["a cup", "a chair"].index(text) for text in dict.fromkeys(texts)]
    own = np.array([compared.index(["a cup", "a chair"].index(text)) for text in texts])
    assert found["r_precision"] == pytest.approx((cosines[:, compared].argmax(axis=1) == own).mean())
    with pytest.raises(ValueError, match="3 clouds and 1 texts; expected as many of both"):
        point_text_scores(model, processor, clouds, ["a cup"])
