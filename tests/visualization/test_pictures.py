"""What pictures show: which clouds are drawn in which frame, and the words, colors and numbers around them."""

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_any3d.visualization import figures, show
from hf_any3d.visualization.figures import plot_views
from hf_any3d.visualization.viewer import CloudView, hex_color, label_colors
from tests.errors import raises

POINTS = np.array([[0, 0, 0], [4, 0, 0], [0, 2.0, 1]])


@pytest.fixture
def figure(monkeypatch):
    """A function that returns the figure that was written last, and how."""
    saved = []

    def savefig(self, file, **settings):
        file.touch()
        saved.append((self, settings))

    monkeypatch.setattr(Figure, "savefig", savefig)
    return lambda: saved[-1]


@pytest.fixture
def rendered(monkeypatch):
    """Return the arguments of each cloud that is drawn, in the place of drawing it."""
    found = []
    monkeypatch.setattr(figures, "_render", lambda *given: found.append(given) or np.ones((2, 2, 3)))
    return found


def test_values_of_all_clouds_have_one_range_and_a_bar(figure, rendered, tmp_path):
    views = [CloudView(POINTS, values=np.array(own)) for own in ([1.0, 2, 3], [-4.0, 0, 0])] + [CloudView(POINTS)]
    plot_views(views, tmp_path / "a.png", value_name="weight", title="above", note="below")
    drawn, _ = figure()
    assert {one[2] for one in rendered} == {(-4, 3)}
    (bar,) = (axes for axes in drawn.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylabel() == "weight" and bar.get_ylim() == (-4, 3) and drawn.get_suptitle() == "above\nbelow"
    assert bar._colorbar.cmap.name == "viridis"


def test_notes_and_categories_stand_below_titles_in_the_color_of_their_status(figure, rendered, tmp_path):
    views = [
        CloudView(POINTS, title="$a", note="lamp → sofa", status="wrong", category=1),
        CloudView(POINTS, title="b", status="right", category=0),
        CloudView(POINTS, title="c"),
    ]
    plot_views(views, tmp_path / "a.png", categories=["so$fa", "lamp"], title_colors=["red", "#123456", "blue"])
    axes = figure()[0].axes
    assert [one.get_title() for one in axes] == [r"\$a", "b", "c"]
    assert [to_hex(one.title.get_color()) for one in axes] == ["#ff0000", "#123456", "#0000ff"]
    found = [[(text.get_text(), text.get_color()) for text in one.texts] for one in axes]
    assert found == [[("lamp → sofa", "#b42318")], [(r"so\$fa", "#1a7f37")], []]
    plot_views(views, tmp_path / "a.png", categories=["sofa", "lamp"])
    assert {one.title.get_color() for one in figure()[0].axes} == {"black"}


@pytest.mark.parametrize(("count", "by_side"), [(8, False), (9, True)])
def test_labels_are_listed_with_their_colors(count, by_side, figure, rendered, tmp_path):
    views = [
        CloudView(np.zeros((count, 3)), labels=np.arange(1, count + 1)),
        CloudView(POINTS, labels=np.ones(3, int)),
    ]
    names = [f"${number}" for number in range(count + 2)]
    plot_views(views, tmp_path / "a.png", names=names, label_name="part", columns=1)
    (legend,) = figure()[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [rf"\${number}" for number in range(1, count + 1)]
    colors = [hex_color(color) for color in label_colors(count + 2)[1 : count + 1]]
    assert [mark.get_color() for mark in legend.legend_handles] == colors
    assert legend.get_title().get_text() == ("part" if by_side else "")
    assert legend._ncols == (1 if by_side else 4)


def test_a_map_has_a_dot_for_each_cloud_in_the_color_and_shape_of_its_class(figure, tmp_path):
    generator = np.random.default_rng(0)
    places, labels = generator.normal(size=(600, 2)), generator.integers(1, 8, 600)
    labels[labels == 4] = 7
    names = [f"class {number}" for number in range(9)]
    show.write_feature_map(tmp_path / "a.png", places, labels, names, heading="map")
    drawn, settings = figure()
    (axes,), present = drawn.axes, np.unique(labels)
    assert settings == {"format": "png"} and axes.get_title() == "map"
    assert [dots.get_label() for dots in axes.collections] == [names[number] for number in present]
    shapes = []
    for number, dots in zip(present, axes.collections, strict=True):
        np.testing.assert_array_equal(dots.get_offsets(), places[labels == number])
        np.testing.assert_allclose(dots.get_facecolor()[0, :3], label_colors(9)[number], atol=1e-6)
        assert dots.get_sizes().tolist() == [15]  # 9000 / 600
        shapes.append(dots.get_paths()[0].vertices.shape)
    # The sixth class has the shape of the first again, another color.
    by_class = dict(zip(present.tolist(), shapes, strict=True))
    assert by_class[1] == by_class[6] and by_class[2] == by_class[7]
    assert axes.get_aspect() == 1 and len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [names[number] for number in present]
    assert legend._ncols == 1


def test_without_matplotlib_the_extra_that_has_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(ImportError, naming="'hf-any3d[visuals]'"):
        plot_views([CloudView(POINTS)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
