"""Messages: their texts and clouds, those of the released programs, and what is no conversation."""

import pytest

from hf_any3d.processing.chat_messages import take_clouds

CLOUD = {"type": "point_cloud"}


def said(role, *parts):
    return {"role": role, "content": list(parts)}


@pytest.mark.parametrize(
    ("part", "cloud"),
    [
        ({**CLOUD, "point_cloud": "a"}, "a"),
        ({**CLOUD, "path": "a.ply"}, {"path": "a.ply"}),
        ({**CLOUD, "points": [1], "colors": [2]}, {"points": [1], "colors": [2]}),
        ({**CLOUD, "bytes": b"ply", "path": None}, {"bytes": b"ply", "path": None}),
        ({**CLOUD, "point_cloud": None}, None),
        (CLOUD, None),
    ],
)
def test_a_part_may_hold_its_cloud_in_several_ways(part, cloud):
    assert take_clouds([said("user", part)])[1] == [cloud]


@pytest.mark.parametrize(("places", "clouds"), [(1, 2), (0, 1), (2, 1), (3, 0)])
def test_other_numbers_of_places_and_clouds_are_both_told(places, clouds):
    with pytest.raises(ValueError, match=f"^{places} places for point clouds and {clouds} clouds$"):
        take_clouds([said("user", *[CLOUD] * places)], ["a"] * clouds, complete=True)
