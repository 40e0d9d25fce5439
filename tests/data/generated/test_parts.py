"""Objects assembled in code: every category has its parts, where they belong."""

import numpy as np
import pytest

from hf_any3d import load_point_dataset
from hf_any3d.data.generated.parts import CATEGORIES, PARTS, assemble
from tests.errors import raises
from tests.golden import assert_stored

OBJECTS = {"train_objects": 12, "validation_objects": 6, "test_objects": 6, "num_points": 128}


@pytest.mark.parametrize(
    ("category", "areas", "others"),
    [
        ("bottle", (0.05704, 0.01428, 0.00588), (0.05336, 0.01428, 0.00588)),
        ("chair", (0.54405, 0.49198, 0.43755), (0.54405, 0.49198, 0.25025)),
        ("lamp", (0.26880, 0.10507, 0.34311), (0.20914, 0.10507, 0.34311)),
        ("mug", (0.03358, 0.00718), (0.03358, 0.00399)),
        ("plane", (1.42943, 1.49558, 0.50957), (1.42943, 1.49558, 0.50957)),
        ("table", (2.31100, 0.55845), (2.84841, 0.89071)),
    ],
)
def test_objects_are_those_of_earlier_versions(category, areas, others):
    """Figures of models that learned these objects hold for no others."""
    for number, expected in enumerate((areas, others)):  # of the first and the second choice, in the middle of ranges
        drawn = CATEGORIES[category](lambda low, high: (low + high) / 2, lambda count, number=number: number)
        found = [sum(mesh.area for name, mesh in drawn if name == part) for part in PARTS[category]]
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("category", "above"), [("table", "top"), ("chair", "seat")])
@pytest.mark.parametrize("is_round", [False, True])
def test_four_legs_stand_under_the_edge_of_what_they_carry(category, above, is_round):
    # A table is round at its first choice, and has a pedestal at the second; a chair has one at 0.
    choices = iter([int(is_round), 0] if category == "table" else [1])
    drawn = CATEGORIES[category](lambda low, high: (low + high) / 2, lambda count: next(choices))
    (plate,) = (mesh.vertices[:, [0, 2]] for part, mesh in drawn if part == above)
    legs = [mesh.vertices[:, [0, 2]] for part, mesh in drawn if part == "legs"]
    assert len(legs) == 4
    if category == "table" and is_round:
        reach = np.linalg.norm(np.concatenate(legs), axis=1).max() / np.linalg.norm(plate, axis=1).max()
    else:
        reach = (np.abs(np.concatenate(legs)).max(axis=0) / np.abs(plate).max(axis=0)).max()
    assert 0.8 < reach < 1.05


@pytest.fixture(scope="module")
def parts():
    return load_point_dataset("parts", **OBJECTS)


@pytest.mark.slow
def test_objects_have_only_parts_of_their_category(parts):
    features = parts["train"].features
    names, categories = features["labels"].feature.names, features["label"].names
    assert categories == list(PARTS) and len(names) == sum(map(len, PARTS.values()))
    for split, rows in parts.items():
        assert len(rows) == OBJECTS[f"{split}_objects"]
        for row in rows:
            category = categories[row["label"]]
            assert {names[part] for part in row["labels"]} == {f"{category} {part}" for part in PARTS[category]}


@pytest.mark.slow
def test_no_object_occurs_twice(parts):
    clouds = [row["points"].tobytes() for rows in parts.values() for row in rows]
    assert len(set(clouds)) == len(clouds) == 24


def test_wrong_arguments_of_the_dataset_are_refused():
    with raises(ValueError, naming="data_dir"):
        load_point_dataset("parts", data_dir="somewhere")
    with raises(KeyError, naming="'sofa'"):
        load_point_dataset("parts", categories=["sofa"])


ASSEMBLED = {
    "bottle": [-0.022709, 0.04518, 0.095896, 0.103054, 0.064867],
    "chair": [0.090264, 0.335548, 0.243124, 0.343874, 0.209301],
    "lamp": [0.107732, 0.28896, 0.066607, -0.12022, 0.291694],
    "mug": [0.007661, -0.022739, 0.05895, 0.050907, 0.072854],
    "plane": [-0.783825, 0.42326, 0.093203, 0.268237, -0.06773],
    "table": [0.859612, 0.388013, -0.09363, 0.325493, -0.204923],
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_points_are_those_of_earlier_versions(category):
    assert_stored(
        [assemble(category, 200, np.random.default_rng(seed))[0] for seed in range(5)], ASSEMBLED[category], 1e-4
    )
