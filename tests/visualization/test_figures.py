"""Pictures of clouds in a grid."""

import numpy as np
from matplotlib.image import imread

from hf_any3d.visualization.figures import _cut, _shade, plot_point_clouds


def painted_columns(path, share):
    """Count the columns of pixels in the right half that are not white."""
    generator = np.random.default_rng(0)
    clouds = [generator.uniform(-1, 1, size=(300, 3)) * size for size in (1.0, 0.2)]
    picture = imread(plot_point_clouds(clouds, path, columns=2, rows_share_frame=share))[..., :3]
    return int((picture[:, picture.shape[1] // 2 :] < 0.9).any(axis=(0, 2)).sum())


def test_in_a_shared_frame_a_small_cloud_is_drawn_small(tmp_path):
    alone, shared = (painted_columns(tmp_path / f"{share}.png", share) for share in (False, True))
    assert shared < 0.5 * alone


def test_titles_are_cut_to_the_width_of_their_cell():
    assert _cut("chair", cell=2.0) == "chair" and _cut("a" * 27, cell=2.0) == "a" * 27
    assert _cut("a" * 28, cell=2.0) == "a" * 26 + "…" and _cut("a" * 9, cell=0.1) == "a" * 7 + "…"
    assert _cut("$5", cell=2.0) == r"\$5"  # no mathematics


def test_only_what_lies_behind_its_surroundings_is_shaded():
    depth = np.full((9, 9), -np.inf)
    depth[2:7, 2:7] = 0.5
    assert (_shade(depth) == 1).all()  # a plane, and the background around it
    depth[4, 4] = 0.2
    pit = _shade(depth)
    assert 0.3 < pit[4, 4] < 0.9 and np.delete(pit.ravel(), 40).min() == 1
    depth[4, 4] = -100
    assert 0.3 < _shade(depth)[4, 4] < pit[4, 4]
