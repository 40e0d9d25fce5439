"""Pictures of a run: which curves and counts they show, in which colors and with which words."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_any3d.visualization import run_results
from hf_any3d.visualization.run_results import plot_confusion_matrix
from hf_any3d.visualization.viewer import hex_color, label_colors

pytestmark = pytest.mark.usefixtures("drawn_results")
MATRIX = np.array([[3, 3, 0], [10_000, 9_999, 20_001], [0, 0, 0]])


@pytest.fixture
def saved(monkeypatch):
    """Return the figures that were written, and how."""
    found = []

    def savefig(self, file, **settings):
        file.touch()
        found.append((self, settings))

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def counts_of(axes) -> dict[tuple[int, int], tuple[str, str]]:
    """Return the texts in the cells of a matrix, by row and column, with their colors."""
    return {text.get_position()[::-1]: (text.get_text(), text.get_color()) for text in axes.texts}


@pytest.mark.parametrize("suffix", ["png", "SVG", "pdf"])
def test_a_matrix_is_shaded_by_the_shares_of_its_rows(suffix, saved, tmp_path):
    path = plot_confusion_matrix(MATRIX.tolist(), ["a", "$b", "c"], tmp_path / f"m.{suffix}", title="Con$fusion")
    ((figure, settings),) = saved
    (axes,) = figure.axes
    assert path == tmp_path / f"m.{suffix}" and settings == {"format": suffix.lower(), "bbox_inches": "tight"}
    assert axes.get_title() == r"Con\$fusion" and (axes.get_xlabel(), axes.get_ylabel()) == (
        "predicted class",
        "true class",
    )
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[0.5, 0.5, 0], [0.25, 9999 / 40_000, 20_001 / 40_000], [0, 0, 0]])
    assert image.get_clim() == (0, 1) and image.cmap.name == "Blues"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", r"\$b", "c"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", r"\$b", "c"]
    # On dark cells, beyond a half, counts are white.
    assert counts_of(axes) == {
        (0, 0): ("3", "black"),
        (0, 1): ("3", "black"),
        (1, 0): ("1e+04", "black"),
        (1, 1): ("9999", "black"),
        (1, 2): ("2e+04", "white"),
    }


def test_a_run_has_its_first_four_charts_and_the_matrix_of_its_last_split():
    curves = {
        "loss": {"training": ([1.0, 2.0], [3.0, 2.0]), "evaluation": ([2.0], [2.5])},
        **{
            f"metric {number}": {"evaluation": (list(range(40 + number)), [0.5] * (40 + number))}
            for number in range(4)
        },
    }
    confusions = {"validation": (np.eye(2, dtype=int), ["a", "b"]), "test": (np.array([[2, 1], [0, 4]]), ["c", "d"])}
    figure = run_results._picture("my $run", curves, confusions)
    *charts, matrix = figure.axes
    assert figure.get_suptitle() == r"my \$run" and [axes.get_title(loc="left") for axes in charts] == list(curves)[:4]
    first, second = charts[0].lines
    assert (list(first.get_xdata()), list(first.get_ydata()), first.get_label()) == ([1, 2], [3, 2], "training")
    assert (list(second.get_xdata()), list(second.get_ydata()), second.get_label()) == ([2], [2.5], "evaluation")
    assert [to_hex(line.get_color()) for line in charts[0].lines] == [hex_color(color) for color in label_colors(2)]
    # Points of few steps are marked; lines of a single one need no list of names.
    assert [axes.lines[0].get_marker() for axes in charts] == [".", ".", "", ""]
    assert [axes.get_legend() is not None for axes in charts] == [True, False, False, False]
    assert [axes.get_xlabel() for axes in charts] == ["", "", "", "step"]
    assert matrix.get_title() == "test" and counts_of(matrix)[0, 0] == ("2", "white")
    assert [text.get_text() for text in matrix.get_xticklabels()] == ["c", "d"]
    # Charts are below each other, the matrix stands right of all.
    assert [axes.get_subplotspec().rowspan.start for axes in charts] == [0, 1, 2, 3]
    assert {axes.get_subplotspec().colspan.start for axes in charts} == {0}
    assert list(matrix.get_subplotspec().rowspan) == [0, 1, 2, 3] and list(matrix.get_subplotspec().colspan) == [1]
