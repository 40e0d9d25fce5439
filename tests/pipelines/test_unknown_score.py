"""What is unlike all training clouds, told by pipeline, command line and service."""

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import PointCloudProcessor, PointFeaturesForPointCloudClassification
from tests.common.case import varied_clouds
from tests.tiny_features import fitted, tiny_features

NAMES = ["chair", "lamp", "table"]
SHARE = 0.05


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """Directory of a classifier with an unknown score, fitted to clouds as the processor prepares them."""
    folder = tmp_path_factory.mktemp("unknown")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    model = fitted(tiny_features(PointFeaturesForPointCloudClassification, **labels), share=SHARE)
    model.save_pretrained(folder)
    PointCloudProcessor(num_points=48, center=False, scale=None).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def known() -> list[np.ndarray]:
    """Two of the clouds of the training."""
    return list(varied_clouds(24, seed=7)[:2].numpy())


@pytest.fixture(scope="module")
def strange() -> np.ndarray:
    """A helix, which is unlike any box."""
    turn = np.linspace(0, 40, 48)
    return np.stack([np.cos(turn), turn - 20, np.sin(turn)], axis=1).astype(np.float32)


def test_pipelines_give_a_score_beside_the_label_and_no_label_far_out(saved, known, strange):
    classify = pipeline("point-cloud-classification", model=saved)
    for answers in (classify(known, top_k=None), classify(known, top_k=None, batch_size=2)):
        assert [len(answer) for answer in answers] == [3, 3]
        for answer in answers:
            assert {one["label"] for one in answer} == set(NAMES)
            assert len({one["unknown"] for one in answer}) == 1 and 0 <= answer[0]["unknown"] < 0.5
    (answer,) = classify(strange, top_k=3)
    assert answer["label"] is None and 0.5 < answer["unknown"] <= 1 and 0 < answer["score"] <= 1
    kept = classify(strange, top_k=3, keep_labels=True)
    assert kept[0] == answer and {one["label"] for one in kept[1:]} == set(NAMES)
    assert classify(known[0], top_k=3, keep_labels=True) == classify(known[0], top_k=3)
    plain = classify(strange, top_k=3, unknown=False)
    assert [set(one) for one in plain] == [{"label", "score"}] * 3
    assert plain[0]["score"] == answer["score"] and plain[0]["label"] in NAMES


def test_without_a_stated_share_there_is_always_a_label(saved, strange):
    classify = pipeline("point-cloud-classification", model=saved)
    classify.model.config.unknown.share = None
    (answer,) = classify(strange)
    assert answer["label"] in NAMES and answer["unknown"] > 0.5
