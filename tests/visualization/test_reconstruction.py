"""Reconstructions by an autoencoder, on a page and in a picture."""

import numpy as np
import pytest

from hf_any3d.visualization.reconstruction import write_reconstructions
from tests.errors import raises


def answer(seed):
    points = np.random.default_rng(seed).normal(size=(60, 3)).astype(np.float32)
    return {
        "points": points,
        "coarse": points[:15],
        "reconstruction": points + 0.01,
        "chamfer_l1": 0.0173,
        "f_score": 0.5,
    }


@pytest.mark.slow
def test_page_and_picture_show_a_row_for_each_cloud(tmp_path):
    answers, names = [answer(0), answer(1)], ["chair", "<lamp>"]
    page = write_reconstructions(tmp_path / "a.html", answers, names).read_text(encoding="utf-8")
    assert page.count('"start"') == 6 and "CD-L1 0.0173, F 0.50" in page and "chair" in page and "<lamp>" not in page
    pictures = [write_reconstructions(tmp_path / f"{n}.png", answers[:n], names[:n]).read_bytes() for n in (1, 2)]
    heights = [int.from_bytes(picture[20:24], "big") for picture in pictures]  # as PNG's header has it
    assert heights[1] > 1.6 * heights[0]


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    with raises(ValueError, naming="'.gif'"):
        write_reconstructions(tmp_path / "a.gif", [answer(0)], ["chair"])
