"""Pictures of clouds in a grid."""

import numpy as np
import pytest
from matplotlib.image import imread

from hf_any3d.visualization.figures import _render, plot_point_clouds, plot_views
from hf_any3d.visualization.viewer import CloudView
from tests.golden import assert_stored


def painted_columns(path, share):
    """Count the columns of pixels in the right half that are not white."""
    generator = np.random.default_rng(0)
    clouds = [generator.uniform(-1, 1, size=(300, 3)) * size for size in (1.0, 0.2)]
    picture = imread(plot_point_clouds(clouds, path, columns=2, rows_share_frame=share))[..., :3]
    return int((picture[:, picture.shape[1] // 2 :] < 0.9).any(axis=(0, 2)).sum())


@pytest.mark.slow
def test_in_a_shared_frame_a_small_cloud_is_drawn_small(tmp_path):
    alone, shared = (painted_columns(tmp_path / f"{share}.png", share) for share in (False, True))
    assert shared < 0.5 * alone


def cloud(count=40, axes=3, **settings):
    return CloudView(np.random.default_rng(3).uniform(-1, 1, (count, axes)) * [1, 0.5, 2][:axes], **settings)


PICTURES = {
    "height": (cloud(), [0.625588, 0.71114]),
    "labels": (cloud(labels=np.arange(40) % 3), [0.543268, 0.737136]),
    "values": (cloud(values=np.arange(40.0)), [0.569597, 0.805077]),
    "colors": (cloud(colors=np.linspace(-0.5, 1.5, 120).reshape(40, 3)), [0.518169, 0.62912]),
    "flat": (cloud(axes=2, values=np.arange(40.0)), [0.714261, 0.498399]),
    "own axis": (cloud(up_axis="z"), [0.609084, 0.700819]),
    "dense": (cloud(2000), [0.36884, -0.592383]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_of_earlier_versions(name):
    view, stored = PICTURES[name]
    other = CloudView(view.points * 0.6 + 0.3)
    alone = _render(view, [view], (0.0, 50.0), "y", np.radians(20), 1.0, 60)
    beside = _render(view, [view, other], (0.0, 50.0), "x", np.radians(5), 1.3, 90)
    assert alone.shape == (60, 60, 3) and 0 <= alone.min() < 0.7 and alone.max() == 1
    assert_stored([alone, beside], stored, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "columns", "settings", "size"),
    [
        (1, 6, {}, (580, 550)),
        (3, 2, {}, (501, 440)),
        (2, 6, {"title": "above"}, (283, 440)),
        (2, 6, {"title": "above", "note": "below", "cell": 1.0}, (206, 330)),
        (2, 1, {"legend": {str(n): (0, 0, n / 30) for n in range(30)}}, (501, 704)),
        (1, 1, {"legend": {"one": (1, 0, 0)}}, (630, 550)),
    ],
)
def test_size_of_a_picture_follows_from_what_it_shows(tmp_path, count, columns, settings, size):
    views = [cloud(12, title=f"cloud {n}", colors=np.zeros((12, 3))) for n in range(count)]
    picture = imread(plot_views(views, tmp_path / "a.png", columns=columns, **settings))
    assert picture.shape[:2] == size
