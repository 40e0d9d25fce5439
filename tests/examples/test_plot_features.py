"""The map of features of a saved model and a dataset."""

import numpy as np
import pytest

from examples import plot_features
from hf_any3d import PointCloudProcessor
from tests.tiny_encoders import adapted_model
from tests.visualization.test_viewer import content


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    adapted_model().save_pretrained(directory)
    PointCloudProcessor(num_points=48).save_pretrained(directory)
    return str(directory)


@pytest.mark.slow
def test_model_and_dataset_give_a_picture_and_a_page(saved, tmp_path, capsys):
    output = [tmp_path / "map.png", tmp_path / "map.html"]
    words = [saved, "--max-samples", "24", "--perplexity", "5", "--feature", "tokens", "--title", "tiny"]
    plot_features.main([*words, "--output", *map(str, output)])
    printed = capsys.readouterr().out
    assert all(str(path) in printed and path.stat().st_size > 1000 for path in output)
    assert "24 clouds; the most similar one is of the same class for" in printed
    page = output[1].read_text(encoding="utf-8")
    assert "<title>tiny</title>" in page and "/" in content(page)[0]["panels"][0]["texts"][0]


def test_the_same_class_is_counted_by_the_nearest_direction_beyond_a_thousand_clouds():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(1030, 4)) * 3, generator.integers(0, 3, 1030)
    features[7] = 0  # nothing is nearest to it
    unit = features / np.maximum(np.linalg.norm(features, axis=1), 1e-300)[:, None]
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    hits = [labels[row.argmax()] == label for row, label in zip(cosine, labels, strict=True)]
    assert plot_features.same_class_share(features.tolist(), labels.tolist()) == pytest.approx(np.mean(hits))
