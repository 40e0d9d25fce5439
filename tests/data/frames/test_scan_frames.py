"""Frames of scans of rooms: found on rooms that are turned, scaled, shifted, noisy and cut, and undone."""

import math

import numpy as np
import pytest

from hf_any3d.data import load_point_dataset
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.frames.scan_frames import FRAME_PARTS, ScanFrame, find_frame, frame_parts, turn_about_z
from hf_any3d.modeling.layers.boxes import UP_AXES, level_rotation, upright_rotation
from tests.errors import raises
from tests.turns import some

UNITS = (1.0, 0.01, 0.001)


@pytest.fixture(scope="module")
def rooms():
    made = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=6, seed=5)
    return [np.asarray(row["points"], dtype=np.float64) for row in made["test"].with_format("numpy")]


def moved(points: np.ndarray, up_axis: str, unit: float, angle: float, seed: int) -> np.ndarray:
    shift = np.random.default_rng(seed).normal(0, 2, 3)
    return (points @ turn_about_z(angle).T + shift) @ upright_rotation(up_axis) / unit


def as_scanned(points: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return a room as a scan of this kind has it."""
    if kind == "noisy":
        return points + generator.normal(0, 0.02, points.shape)
    if kind == "cut":
        return points[(points[:, 0] < np.percentile(points[:, 0], 70)) & (points[:, 2] < 2)]
    if kind == "with a ceiling":
        ceiling = generator.uniform(points.min(axis=0), points.max(axis=0), (1500, 3))
        ceiling[:, 2] = points[:, 2].max()
        return np.concatenate([points, ceiling])
    return points


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(["whole", "noisy", "cut", "with a ceiling"], left_out=["whole", "noisy"]))
def test_frames_of_moved_rooms_are_found(rooms, kind):
    for number, (points, up_axis) in enumerate(zip(rooms, UP_AXES, strict=True)):
        generator = np.random.default_rng(number)
        points = as_scanned(points, kind, generator)
        angle, unit = generator.uniform(-0.7, 0.7), UNITS[number % 3]
        scan = moved(points, up_axis, unit, angle, number)
        frame = find_frame(scan)
        assert (frame.up_axis, frame.unit, frame.warnings) == (up_axis, unit, ())
        assert frame.angle == pytest.approx(angle, abs=math.radians(1.5))
        assert len(frame.sentences) == 4 and not any("\n" in sentence for sentence in frame.sentences)
        seen = frame.apply(scan)
        assert np.percentile(seen[:, 2], 1) == pytest.approx(0, abs=0.06)
        np.testing.assert_allclose(frame.undo(seen), scan, atol=1e-9 / unit)


def tilted(points: np.ndarray, degrees: float, toward: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points that are tilted, and what points up in them."""
    lean = math.sin(math.radians(degrees))
    up = np.array([lean * math.cos(toward), lean * math.sin(toward), math.cos(math.radians(degrees))])
    return points @ level_rotation(up), up


TILTS = [(1.5, "whole"), (3, "noisy"), (6, "cut"), (10, "whole"), (10, "noisy")]


@pytest.mark.slow
@pytest.mark.parametrize(("degrees", "kind"), some(TILTS, left_out=[(3, "noisy"), (10, "whole")]))
def test_tilted_rooms_are_leveled(rooms, degrees, kind):
    for number, (points, up_axis) in enumerate(zip(rooms, UP_AXES, strict=True)):
        generator = np.random.default_rng(number)
        points = as_scanned(points, kind, generator)
        angle, unit = generator.uniform(-0.7, 0.7), UNITS[number % 3]
        leaning, up = tilted(points @ turn_about_z(angle).T, degrees, generator.uniform(0, 6))
        scan = moved(leaning, up_axis, unit, 0.0, number)
        frame = find_frame(scan)
        assert (frame.up_axis, frame.unit, frame.warnings) == (up_axis, unit, ())
        left = math.degrees(math.acos(min(float(frame.up @ (up @ upright_rotation(up_axis))), 1.0)))
        assert left < 0.7 and math.degrees(frame.tilt) == pytest.approx(degrees, abs=left + 1e-6)
        assert f"leveled by {math.degrees(frame.tilt):.1f}°" in frame.sentences and len(frame.sentences) == 5
        assert frame.angle == pytest.approx(angle, abs=math.radians(2)) and frame.is_changed
        seen = frame.apply(scan)
        assert np.percentile(seen[:, 2], 1) == pytest.approx(0, abs=0.08)
        np.testing.assert_allclose(frame.undo(seen), scan, atol=1e-9 / unit)


def test_a_tilt_that_floor_and_walls_do_not_agree_on_is_a_warning(rooms):
    # A ramp between upright walls: heights are sheared.
    ramp = rooms[0].copy()
    ramp[:, 2] += math.tan(math.radians(7)) * ramp[:, 0]
    frame = find_frame(ramp)
    assert frame.up is None and "floor and walls disagree" in " ".join(frame.warnings)
    # A floor alone may be a ramp, too.
    points, _ = tilted(rooms[0], 5, 1.0)
    alone = points[rooms[0][:, 2] < 0.02]
    assert find_frame(alone, up_axis="z").up is None
    leveled = find_frame(points)
    assert leveled.up is not None and find_frame(points, min_confidence=1.1).up is None


@pytest.mark.slow
def test_only_the_parts_that_are_asked_for_are_found(rooms):
    points, _ = tilted(rooms[1] @ turn_about_z(0.4).T + (0, 0, 3), 5, 1.0)
    scan = points @ upright_rotation("y") * 1000
    whole = find_frame(scan)
    assert (whole.up_axis, whole.unit) == ("y", 0.001) and whole.up and whole.angle and whole.floor
    kept = {"level": "up", "unit": "unit", "floor": "floor", "turn": "angle"}
    for left_out, name in kept.items():
        frame = find_frame(scan, parts=[part for part in FRAME_PARTS if part != left_out])
        assert getattr(frame, name) == getattr(ScanFrame(), name) and len(frame.sentences) == 4
        np.testing.assert_allclose(frame.undo(frame.apply(scan)), scan, atol=1e-6)
    assert find_frame(points, parts=["unit"]).is_changed is False
    assert frame_parts(True) == FRAME_PARTS and frame_parts(False) == ()
    assert frame_parts("turn, unit") == frame_parts(["unit", "turn"]) == ("unit", "turn")
    for wrong in ("up", [], "", ["turn", "tilt"], 1, None):
        with raises(ValueError, naming="up_axis"):
            frame_parts(wrong)


def test_sentences_say_what_was_done(rooms):
    scan = moved(rooms[0], "-y", 0.001, math.radians(30), 0)
    up, turn, unit, floor = find_frame(scan).sentences
    assert up == "turned: -y points up in the file"
    assert turn.startswith("turned by -30° about the up axis") or turn.startswith("turned by -29° about")
    assert unit.startswith("in millimeters: ") and "m in size" in unit
    assert floor.startswith("the floor is at y = ")


def test_a_room_as_models_expect_it_stays(rooms):
    frame = find_frame(rooms[0])
    assert (frame.up_axis, frame.unit, frame.angle) == ("z", 1.0, 0.0)
    assert abs(frame.floor) < 0.03 and frame.sentences[0] == "z points up"


def test_a_known_axis_is_not_searched_for(rooms):
    lying = moved(rooms[1], "y", 1.0, 0.3, 1)
    assert find_frame(lying, up_axis="y").up_axis == "y"
    with raises(ValueError, naming="up_axis"):
        find_frame(lying, up_axis="w")


def test_what_cannot_be_told_stays_with_a_warning(rooms):
    # A cloud without planes has no axes, and a cube of walls no way up.
    blob = np.random.default_rng(0).normal(size=(3000, 3))
    frame = find_frame(blob)
    assert frame.rotation == pytest.approx(np.eye(3)) and frame.unit == 1.0 and frame.warnings
    generator = np.random.default_rng(1)
    cube = generator.uniform(-1.5, 1.5, (6000, 3))
    cube[np.arange(6000), generator.integers(0, 3, 6000)] = generator.choice([-1.5, 1.5], 6000)
    frame = find_frame(cube)
    assert frame.up_axis == "z" and "cannot tell whether" in frame.warnings[0]
    frame = find_frame(rooms[0] * 0.1)
    assert frame.unit == 1.0 and "is not a room in meters, centimeters or millimeters" in " ".join(frame.warnings)
    frame = find_frame(rooms[0], min_confidence=1.1)
    assert (frame.up_axis, frame.unit, frame.angle) == ("z", 1.0, 0.0) and len(frame.warnings) >= 3
    assert find_frame(np.zeros((5, 3))).warnings


def test_turns_agree_with_those_of_the_processor():
    points = np.random.default_rng(0).normal(size=(4, 3))
    for axis in "xyz":
        np.testing.assert_array_equal(turn_up_axis(points, axis, "z"), points @ upright_rotation(axis).T)
    for axis in UP_AXES:
        matrix = upright_rotation(axis)
        up = np.zeros(3)
        up["xyz".index(axis[-1])] = -1 if axis.startswith("-") else 1
        assert np.linalg.det(matrix) == pytest.approx(1) and (matrix @ up).tolist() == [0, 0, 1]
        assert ScanFrame(axis).apply(up[None])[0].tolist() == [0, 0, 1]
