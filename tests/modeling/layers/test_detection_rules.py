"""The choice of answers among boxes, against plain loops, for every kind of rule; directions that point up."""

from hf_any3d.modeling.layers.boxes import level_rotation
from tests.errors import raises


def test_directions_that_do_not_point_up_are_refused():
    for wrong in ((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)):
        with raises(ValueError, naming=f"up={wrong}"):
            level_rotation(wrong)
