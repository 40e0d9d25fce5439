"""One terrain: surface, class 2 and heights of a copy agree, and what is withheld or noise changes none of them."""

import laspy
import numpy as np
import pytest
import rasterio
from scipy.interpolate import LinearNDInterpolator
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.generated.tiles import draw_tile, las_bytes
from hf_any3d_survey.inventory.files import HEIGHT, Outputs, take_inventory
from hf_any3d_survey.inventory.terrain import Terrain

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 60.0


@pytest.fixture(scope="module")
def pipe():
    return pipeline("point-cloud-inventory")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A tile of point format 6, half of whose points have a class."""
    path = tmp_path_factory.mktemp("terrain") / "clean.las"
    path.write_bytes(las_bytes(draw_tile(5, SIZE, houses=3, trees=8, bushes=6), labeled=True))
    las = laspy.convert(laspy.read(path), point_format_id=6, file_version="1.4")
    las.classification[::2] = 1
    las.write(path)
    return path


def with_points(path, target, xyz, code, is_withheld=False):
    """Write a copy of a tile with further points behind its own."""
    las = laspy.read(path)
    count = len(las.points)
    new = laspy.LasData(las.header)
    new.points = laspy.ScaleAwarePointRecord.zeros(count + len(xyz), header=las.header)
    for name in las.point_format.dimension_names:
        new[name][:count] = las[name]
    new.x[count:], new.y[count:], new.z[count:] = xyz.T
    new.classification[count:] = code
    new.withheld[count:] = is_withheld
    new.return_number[count:] = new.number_of_returns[count:] = 1
    new.write(target)
    return count


def heights_above_class_2(las):
    """Heights above a triangulation of class 2, NaN beyond it."""
    flat = np.column_stack([las.x, las.y])
    is_ground = np.array(las.classification) == 2
    z = np.array(las.z)
    return z - LinearNDInterpolator(flat[is_ground], z[is_ground])(flat)


@pytest.mark.parametrize("classes", ["unclassified", "all"])
@pytest.mark.parametrize("ending", ["las", "laz"])
def test_heights_are_those_above_the_class_2_that_is_written(pipe, clean, tmp_path, ending, classes):
    copy = tmp_path / f"copy.{ending}"
    take_inventory(pipe, [clean], Outputs([copy], classes=classes))
    las = laspy.read(copy)
    heights = np.array(las[HEIGHT])
    is_ground = np.array(las.classification) == 2
    assert (np.abs(heights[is_ground]) < 0.5).mean() > 0.999
    away = np.abs(heights - heights_above_class_2(las))
    assert np.nanquantile(away, 0.95) < 0.15 and np.nanquantile(away, 0.999) < 0.6


@pytest.mark.parametrize("kind", ["withheld", "low noise", "high noise"])
def test_points_that_are_set_aside_change_nothing_else(pipe, clean, tmp_path, kind):
    """Neither ground nor canopy nor things, whether many or few, alone or in groups."""
    generator = np.random.default_rng(1)
    las = laspy.read(clean)
    chosen = np.column_stack([las.x, las.y, las.z])[generator.choice(len(las.points), 400)]
    offset = -60 if kind == "low noise" else 150
    xyz = chosen + [0, 0, offset] + np.column_stack([np.zeros((400, 2)), generator.normal(0, 1, 400)])
    code = {"withheld": 1, "low noise": 7, "high noise": 18}[kind]
    noisy = tmp_path / "noisy.las"
    count = with_points(clean, noisy, xyz, code, kind == "withheld")
    outputs = {}
    for name, path in (("clean", clean), ("noisy", noisy)):
        files = {end: tmp_path / f"{name}_copy.{end}" for end in ("las", "csv", "dtm.tif", "chm.tif")}
        found = take_inventory(
            pipe, [path], Outputs([files["las"]], files["csv"], files["dtm.tif"], files["chm.tif"], classes="all")
        )
        assert found.points == [len(laspy.read(path).points)]
        outputs[name] = files
    for end in ("dtm.tif", "chm.tif"):
        with rasterio.open(outputs["clean"][end]) as own, rasterio.open(outputs["noisy"][end]) as other:
            np.testing.assert_array_equal(own.read(), other.read())
    assert outputs["clean"]["csv"].read_text() == outputs["noisy"]["csv"].read_text()
    own, other = laspy.read(outputs["clean"]["las"]), laspy.read(outputs["noisy"]["las"])
    for name in (HEIGHT, "classification", "PredInstance"):
        np.testing.assert_array_equal(np.array(own[name]), np.array(other[name])[:count])
    assert set(np.array(other.classification)[count:]) == {code}
    assert (np.sign(np.array(other[HEIGHT])[count:]) == np.sign(offset)).all()


def test_a_terrain_goes_on_through_gaps_and_without_spikes():
    generator = np.random.default_rng(0)
    flat = generator.random((20_000, 2)) * 100
    slope = np.column_stack([flat, 0.6 * flat[:, 0] - 0.3 * flat[:, 1] + generator.normal(0, 0.03, len(flat))])
    is_ground = generator.random(len(flat)) < 0.3
    is_ground &= ~((np.abs(flat - 50) < 15).all(axis=1) | (flat[:, 0] > 90))
    points = slope.copy()
    spikes = generator.choice(np.flatnonzero(is_ground), 40, replace=False)
    points[spikes, 2] += np.where(np.arange(40) % 2, -12, 3)
    terrain = Terrain.of(points, is_ground, 0.7)
    assert np.quantile(np.abs(terrain.heights_above(slope)), 0.999) < 0.3
    guessed = terrain.guessed_at(slope)
    assert guessed[(np.abs(flat - 50) < 9).all(axis=1)].all() and guessed[flat[:, 0] > 96].all()
    assert not guessed[(np.abs(flat - 50) > 15).any(axis=1) & (flat[:, 0] < 90)].any()
    errors, covered = terrain.held_out_errors(
        terrain.cells_with(slope[flat[:, 1] < 20]), np.array([[0, 0], [100, 100]])
    )
    assert len(covered) and len(errors) > len(covered)
    assert np.abs(np.concatenate([errors, covered])).max() < 0.3


def test_a_terrain_is_the_same_in_parts_of_a_place():
    generator = np.random.default_rng(0)
    flat = generator.random((60_000, 2)) * [240, 100]
    points = np.column_stack([flat, 8 * np.sin(flat[:, 0] / 20) + 0.2 * flat[:, 1]])
    is_ground = (generator.random(len(flat)) < 0.2) & ~(np.abs(flat - [120, 50]) < 6).all(axis=1)
    whole = Terrain.of(points, is_ground, 0.65).heights_above(points)
    near = flat[:, 0] < 120 + 40
    part = Terrain.of(points[near], is_ground[near], 0.63)
    inside = flat[:, 0] < 120
    assert np.abs(part.heights_above(points[inside]) - whole[inside]).max() < 0.05
