"""Maps of features, as pictures and as pages."""

import sys

import numpy as np
import pytest

from hf_any3d.visualization.show import project_features, write_feature_map
from hf_any3d.visualization.viewer import hex_color, label_colors
from tests.visualization.test_viewer import content, decoded

LABELS = np.repeat(np.arange(3), 20)


def groups(spread=0.2):
    """Features of three classes in different directions, with random lengths."""
    generator = np.random.default_rng(0)
    features = np.eye(16)[LABELS * 5] + spread * generator.normal(size=(60, 16))
    return features * generator.uniform(0.1, 10, size=(60, 1))


@pytest.mark.slow
def test_groups_stay_groups_and_the_seed_decides():
    places = project_features(groups(), perplexity=10)
    assert places.shape == (60, 2) and places.dtype == np.float32
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    distance[np.arange(60), np.arange(60)] = np.inf
    assert (LABELS[distance.argmin(axis=1)] == LABELS).all()
    assert np.array_equal(project_features(groups(), perplexity=10), places)


OPEN_TSNE = """
class TSNE:
    def __init__(self, perplexity, metric, random_state):
        assert (perplexity, metric, random_state) == (25.0, "cosine", 42)

    def fit(self, features):
        return features[:, :2]
"""


def test_openTSNE_is_taken_where_it_is_installed(tmp_path, monkeypatch):
    (tmp_path / "openTSNE.py").write_text(OPEN_TSNE)
    monkeypatch.syspath_prepend(tmp_path)
    features = groups().astype(np.float32)
    assert np.array_equal(project_features(features), features[:, :2])
    del sys.modules["openTSNE"]


def test_page_contains_places_classes_and_names_and_needs_no_network(tmp_path):
    places = np.random.default_rng(0).normal(size=(60, 2)) * [30, 10] + 7
    names, texts = ["<b>chair", "lamp", "table", "never"], [f"shape {n} </script>" for n in range(60)]
    path = write_feature_map(tmp_path / "new" / "map.html", places, LABELS, names, texts=texts, heading="a & b")
    page = path.read_text(encoding="utf-8")
    data, shown = content(page)
    (panel,), (classes, *_) = data["panels"], data["colorings"]
    assert decoded(classes["values"], "<u2").tolist() == LABELS.tolist() and panel["texts"] == texts
    assert page.count("</script>") == 2 and panel["flat"]
    assert np.abs(shown).max() == pytest.approx(1, abs=1e-4)
    ratio = np.ptp(shown[:, :2], axis=0) / np.ptp(places, axis=0)
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3), "both axes have one scale"
    assert classes["names"] == names and classes["colors"][2] == hex_color(label_colors(4)[2])
    assert "<b>chair" not in page and "a &amp; b" in page and "http:" not in page and "src=" not in page


def test_picture_is_written_completely(tmp_path):
    path = write_feature_map(tmp_path / "map.png", groups()[:, :2], LABELS, ["a", "b", "c"], heading="three")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
