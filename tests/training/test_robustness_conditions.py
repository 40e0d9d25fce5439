"""Robustness, number by number: what each condition does to a cloud, what is averaged, told and drawn."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hf_any3d import PointCloudProcessor
from hf_any3d.data.corruptions import CORRUPTIONS, FAMILIES, corrupt
from hf_any3d.training import robustness
from hf_any3d.training.robustness import (
    Condition,
    ConditionRows,
    conditions,
    robustness_table,
    summarize_robustness,
)
from tests.training.test_robustness import rows

FEATURES = ["xyz", "normals", "rgb"]


@pytest.fixture(scope="module")
def processor():
    return PointCloudProcessor(num_points=64, min_points=8, features=FEATURES, up_axis="z")


def changed(name, level, family, processor, seed=3):
    """Return a cloud with normals and colors, and the same under a condition."""
    cloud = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    before = cloud.copy()
    found = Condition(family, name, level).apply(cloud, np.random.default_rng(seed), processor)
    np.testing.assert_array_equal(cloud, before, err_msg="the input is kept")
    return cloud, found, np.random.default_rng(seed)


@pytest.mark.parametrize("name", ["shear", "lidar", "upsampling"])
def test_corruptions_know_the_channels_and_the_axis_of_the_processor(name, processor):
    family = next(family for family, members in FAMILIES.items() if CORRUPTIONS[name] in members)
    cloud, found, generator = changed(name, 4, family, processor)
    np.testing.assert_array_equal(found, corrupt(cloud, name, 4, generator, features=FEATURES, up_axis="z"))


@pytest.mark.parametrize(("level", "left"), [(12, 12), (99, 40)])
def test_fewer_points_are_drawn_without_repeats(level, left, processor):
    cloud, found, generator = changed("number of points", level, "points", processor)
    np.testing.assert_array_equal(found, cloud[generator.choice(40, left, replace=False)])
    assert len(np.unique(found, axis=0)) == left


@pytest.mark.parametrize(("name", "gray"), [("gray", 0.5), ("black", 0)])
def test_colors_alone_are_replaced(name, gray, processor):
    cloud, found, _ = changed(name, 0, "color", processor)
    np.testing.assert_array_equal(found[:, :6], cloud[:, :6])
    assert (found[:, 6:] == gray).all()


def test_clouds_turn_in_place_with_their_normals(processor):
    cloud, found, generator = changed("up axis", 90, "orientation", processor)
    angle = np.radians(generator.uniform(-90, 90))
    assert abs(angle) > 0.1
    cos, sin = np.cos(angle), np.sin(angle)
    center = cloud[:, :3].mean(axis=0)
    x, y, z = (cloud[:, :3] - center).T
    turned = np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)
    np.testing.assert_allclose(found[:, :3], turned + center, atol=1e-5)
    x, y, z = cloud[:, 3:6].T
    np.testing.assert_allclose(found[:, 3:6], np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1), atol=1e-5)
    np.testing.assert_array_equal(found[:, 6:], cloud[:, 6:])
    cloud, found, generator = changed("any axis", 180, "orientation", processor)
    matrix = Rotation.random(None, generator).as_matrix()
    np.testing.assert_allclose(found[:, :3], (cloud[:, :3] - center) @ matrix + center, atol=1e-5)
    np.testing.assert_allclose(found[:, 3:6], cloud[:, 3:6] @ matrix, atol=1e-5)


def test_clouds_become_as_sparse_as_the_processor_admits(processor):
    found = [(one.family, one.name, one.level) for one in conditions(processor)]
    assert found[75:] == [
        *(("points", "number of points", count) for count in (32, 16, 8)),
        *(("orientation", "up axis", limit) for limit in (30, 90, 180)),
        ("orientation", "any axis", 180),
        ("color", "gray", 0),
        ("color", "black", 0),
    ]
    families = [family for family, members in FAMILIES.items() for _ in range(5 * len(members))]
    assert [family for family, *_ in found[:75]] == families


def test_clouds_with_too_few_points_left_are_filled_up(monkeypatch):
    processor = PointCloudProcessor(num_points=24, min_points=12)
    monkeypatch.setattr(robustness, "corrupt", lambda points, *_, **__: points[:5])
    found = ConditionRows(rows(1, points=20), processor, Condition("noise", "gaussian", 1))[0]["points"]
    assert found.shape == (24, 3) and len(np.unique(found.round(5), axis=0)) == 5


def accuracies() -> list[dict]:
    """Rows of all corruptions, with accuracies that all differ, and others that count for nothing."""
    found = [
        {"family": family, "name": member.__name__, "level": level, "accuracy": (100 + 7 * n * level) / 1000}
        for n, (family, member) in enumerate((family, one) for family, all_ in FAMILIES.items() for one in all_)
        for level in (5, 1, 2, 3, 4)
    ]
    others = [("points", "number of points", 512), ("orientation", "up axis", 30), ("orientation", "any axis", 180)]
    others.append(("color", "gray", 0))
    return [
        {**row, "mean_class_accuracy": row["accuracy"] / 2}
        for row in [
            *found,
            *({"family": f, "name": n, "level": v, "accuracy": 0.01 * i} for i, (f, n, v) in enumerate(others)),
        ]
    ]


def test_families_are_averaged_over_their_corruptions_and_levels():
    found = summarize_robustness({"accuracy": 0.875}, iter(accuracies()))
    # A corruption's mean is 0.1 + 0.007 n 3, as the mean level is 3.
    expected = {
        "clean": 0.875,
        "corrupted": 0.1 + 0.021 * 7,
        "density": 0.142,
        "noise": 0.247,
        "transformation": 0.352,
    }
    assert found == pytest.approx(expected | {"lowest": 0.1}) and list(found) == [*expected, "lowest"]


@pytest.fixture
def told():
    clean = {"accuracy": 0.875, "mean_class_accuracy": 0.75}
    settings = {"clouds": 40, "points": 1024, "split": "test", "dataset": "a|b"}
    made = accuracies()
    return {"settings": settings, "clean": clean, "rows": made, "summary": summarize_robustness(clean, made)}


def test_the_table_has_every_number_at_its_place(told):
    lines = robustness_table(told).splitlines()
    start = "Overall accuracy in percent on 40 clouds (test of a\\|b), 1024 points each: **87.5** on clean clouds, "
    start += "**24.7** on average over 15 corruptions at 5 severities (density 14.2, noise 24.7, transformation 35.2)."
    assert lines[0] == start
    assert lines[2:4] == ["| corruption | family | 1 | 2 | 3 | 4 | 5 | mean |", "|---|---|---|---|---|---|---|---|"]
    for number, (line, name) in enumerate(zip(lines[4:19], CORRUPTIONS, strict=True)):
        values = [10 + 0.7 * number * level for level in (1, 2, 3, 4, 5)]
        family = list(FAMILIES)[number // 5]
        cells = " | ".join(f"{value:.1f}" for value in [*values, np.mean(values)])
        assert line == f"| {name} | {family} | {cells} |"
    assert lines[19:27] == [
        "",
        "| other condition | accuracy | mean class accuracy |",
        "|---|---|---|",
        "| clean | 87.5 | 75.0 |",
        "| 512 points | 0.0 | 0.0 |",
        "| rotated about the up axis by up to 30° | 1.0 | 0.5 |",
        "| rotated about any axis | 2.0 | 1.0 |",
        "| gray in place of colors | 3.0 | 1.5 |",
    ]
    assert lines[27] == "" and lines[28].startswith("Corruptions are those of ModelNet40-C") and len(lines) == 29
    for missing in ("split", "dataset"):
        other = {**told, "settings": told["settings"] | {missing: None}}
        left = {"split": "a\\|b", "dataset": "test"}[missing]
        assert robustness_table(other).startswith(f"Overall accuracy in percent on 40 clouds ({left}), 1024")
