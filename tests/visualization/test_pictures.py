"""What pictures show: which clouds are drawn in which frame, and the words, colors and numbers around them."""

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_any3d.visualization import figures, show
from hf_any3d.visualization.figures import plot_views
from hf_any3d.visualization.viewer import CloudView, hex_color, label_colors

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


def five(**settings) -> list[CloudView]:
    return [CloudView(POINTS * (number + 1), title=f"cloud {number}", **settings) for number in range(5)]


@pytest.mark.parametrize("share", [False, True])
def test_clouds_are_drawn_alone_or_with_those_of_their_row(share, figure, rendered, tmp_path):
    views = five()
    settings = {"columns": 2, "rows_share_frame": share, "up_axis": "x", "elevation": 30.0, "zoom": 1.5, "cell": 1.2}
    path = plot_views(views, tmp_path / "a.png", **settings)
    rows = [views[:2], views[:2], views[2:4], views[2:4], views[4:]] if share else [[one] for one in views]
    drawn, settings = figure()
    assert path == tmp_path / "a.png" and settings == {"format": "png"} and len(rendered) == 5
    for one, row, (cloud, beside, limits, up_axis, tilt, zoom, side) in zip(views, rows, rendered, strict=True):
        assert np.array_equal(cloud.points, one.points) and [other.title for other in beside] == [
            other.title for other in row
        ]
        assert (limits, up_axis, zoom, side) == ((0, 0), "x", 1.5, 264) and tilt == pytest.approx(np.pi / 6)
    # A grid of three rows and two columns, filled row by row.
    places = [axes.get_subplotspec().get_geometry() for axes in drawn.axes]
    assert places == [(3, 2, number, number) for number in range(5)]
    assert [axes.get_title() for axes in drawn.axes] == [f"cloud {number}" for number in range(5)]
    assert not any(axes.axison for axes in drawn.axes) and not drawn.legends and drawn.get_suptitle() == ""


@pytest.mark.parametrize(("count", "side"), [(1, 1100), (2, 440)])
def test_a_single_cloud_is_drawn_larger(count, side, figure, rendered, tmp_path):
    plot_views(five()[:count], tmp_path / "a.png")
    assert {one[-1] for one in rendered} == {side} and {one[4] for one in rendered} == {np.radians(20)}


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


def test_a_long_legend_of_own_colors_has_no_title(figure, rendered, tmp_path):
    legend = {f"name {number}": (number / 30, 0, 1) for number in range(30)}
    plot_views([CloudView(POINTS, colors=POINTS / 4)], tmp_path / "a.png", legend=legend)
    (made,) = figure()[0].legends
    assert made.get_title().get_text() == "" and len(made.get_texts()) == 30 and made._ncols == 2
    assert made.legend_handles[15].get_color() == "#8000ff"


def test_of_points_at_one_place_the_last_is_seen():
    """Points in a plane are equally near, and those of a file cover each other in its order."""
    places = np.stack(np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 20)), axis=-1).reshape(-1, 2)
    below, above = [1.0, 0, 0], [0, 0, 1.0]
    cloud = CloudView(np.concatenate([places, places]), colors=np.repeat([below, above], 400, axis=0))
    picture = figures._render(cloud, [cloud], (0, 0), "y", 0.0, 1.0, 60)
    shown = {tuple(color) for color in picture.reshape(-1, 3).round(6).tolist()}
    assert tuple(above) in shown and tuple(below) not in shown


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


@pytest.mark.parametrize(("count", "size"), [(2, 40), (3000, 4)])
def test_dots_of_a_map_are_neither_dust_nor_coins(count, size, figure, tmp_path):
    labels = np.arange(count) % 26
    show.write_feature_map(tmp_path / "a.png", np.random.rand(count, 2), labels, [str(n) for n in range(30)])
    drawn, _ = figure()
    assert drawn.axes[0].collections[0].get_sizes().tolist() == [size] and drawn.axes[0].get_title() == ""
    assert drawn.legends[0]._ncols == (2 if count > 26 else 1)


def test_every_argument_of_clouds_reaches_their_pictures(monkeypatch):
    made = []
    monkeypatch.setattr(figures, "plot_views", lambda views, path, **given: made.append((path, given)) or "written")
    given = {
        **{"title_colors": ["red"], "legend": {"a": (1, 0, 0)}, "columns": 3, "rows_share_frame": True},
        **{"up_axis": "z", "elevation": 7.0, "zoom": 2.0, "cell": 1.5},
    }
    assert figures.plot_point_clouds([POINTS], "a.png", heading="above", **given) == "written"
    figures.plot_point_clouds([POINTS], "b.png")
    usual = {"columns": 6, "rows_share_frame": False, "up_axis": "y", "elevation": 18, "zoom": 1, "cell": 2}
    assert made == [
        ("a.png", {"title": "above", **given}),
        ("b.png", {"title": "", "title_colors": None, "legend": None, **usual}),
    ]


@pytest.mark.parametrize(
    ("draw", "what"),
    [
        (lambda path: plot_views([CloudView(POINTS)], path), "drawing point clouds"),
        (lambda path: show.write_feature_map(path, POINTS[:, :2], np.zeros(3, int), ["a"]), "drawing a map"),
    ],
)
def test_without_matplotlib_the_extra_that_has_it_is_named(draw, what, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=rf"{what} needs matplotlib: pip install 'hf-any3d\[visuals\]'"):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
