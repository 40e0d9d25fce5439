"""Roofs of generated places: houses are buildings, and canopies, rocks, hedges and wires are none."""

import numpy as np
import pytest
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.files import PointCloudData
from survey.studies.scenes import SCENES, by_photogrammetry, without_returns
from tests.turns import by_turns

pytestmark = pytest.mark.filterwarnings("ignore")
SEED = 52


@pytest.fixture(scope="module")
def pipe():
    return pipeline("point-cloud-inventory")


def buildings_of(found):
    return [thing for thing in found["things"] if thing.label == "building"]


@pytest.mark.parametrize(("kind", "change"), by_turns(SCENES, [None, without_returns, by_photogrammetry]))
def test_houses_alone_are_buildings(pipe, kind, change):
    cloud = SCENES[kind](SEED)
    if change is not None:
        cloud = change(cloud)
    found = pipe(cloud)
    area = sum(thing.area for thing in buildings_of(found))
    roofs = cloud.points[cloud.labels == 6]
    expected = len(np.unique(np.floor(roofs[:, :2]), axis=0))
    if not expected:
        assert area == 0
        return
    assert area == pytest.approx(expected, rel=0.4)
    for thing in buildings_of(found):
        assert set(found["classes"][found["numbers"] == thing.number]) == {6}
        assert thing.score > 0.5


def test_points_of_no_roof_are_what_they_look_like(pipe):
    """Wires are unclassified, and plants are vegetation of their height."""
    wires = pipe(SCENES["power line"](SEED))
    assert (wires["classes"][wires["heights"] > 8] != 2).all()
    for found in (wires, pipe(by_photogrammetry(SCENES["wood"](SEED)))):
        plants = np.isin(found["classes"], (3, 4, 5))
        by_height = np.array([3, 4, 5])[np.digitize(found["heights"][plants], [0.5, 1.5])]
        assert (found["classes"][plants] == by_height).all()


@pytest.mark.parametrize(("apart", "step"), [(1.0, 0.15), (0.5, 0.05), (2.0, 0.3)])
def test_bundled_wires_without_returns_are_no_building(pipe, apart, step):
    generator = np.random.default_rng(0)
    ground = np.column_stack([generator.uniform(0, [120, 60], (36_000, 2)), np.zeros(36_000)])
    along, across = (values.ravel() for values in np.meshgrid(np.arange(0, 120, step), np.arange(8) * apart + 26))
    wires = np.column_stack([along, across, 15 + 3 * ((along - 60) / 60) ** 2])
    points = np.concatenate([ground, wires]) + generator.normal(0, 0.03, (len(ground) + len(wires), 3))
    points[:, 2] += 0.02 * points[:, 0]
    found = pipe(PointCloudData(points.astype(np.float32), meters_per_unit=1.0))
    assert not buildings_of(found)
    assert not np.isin(found["classes"][len(ground) :], (2, 6)).any()
