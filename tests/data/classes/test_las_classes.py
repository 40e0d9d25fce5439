"""What codes of LAS mean in point formats 0 to 5 and 6 to 10: tables 9 and 17 of LAS 1.4 R15."""

import itertools

import numpy as np
import pytest

from hf_any3d.data.classes.class_rule import Classes, ClassRule
from hf_any3d.data.classes.las_classes import (
    ASPRS_CLASSES,
    ASPRS_COLORS,
    CURRENT,
    LEGACY,
    Kind,
    kind_of,
    names_object,
    names_of,
)
from hf_any3d.data.files import read_point_cloud
from hf_any3d.visualization.viewer import parse_color

laspy = pytest.importorskip("laspy")


def test_each_point_format_has_its_own_objects():
    assert [code for code in range(32) if names_object(code, LEGACY)] == [2, 3, 4, 5, 6, 9]
    objects = [2, 3, 4, 5, 6, *range(9, 12), *range(13, 18), 19, 21]
    assert [code for code in range(64) if names_object(code, CURRENT)] == objects
    assert kind_of(12, LEGACY) is kind_of(8, LEGACY) is kind_of(20, CURRENT) is Kind.USE
    assert kind_of(12, CURRENT) is kind_of(8, CURRENT) is kind_of(11, LEGACY) is kind_of(63, CURRENT) is Kind.RESERVED
    assert kind_of(64, CURRENT) is kind_of(255, CURRENT) is Kind.OWN
    # PDAL 2.2.0 wrote class 12 with the flag withheld of format 1 as 140 into format 6.
    assert kind_of(140, CURRENT) is kind_of(130, CURRENT) is Kind.FLAGGED
    assert names_of(LEGACY)[12] == "overlap" and names_of(CURRENT)[12] == "overlap (reserved)"


@pytest.mark.parametrize("point_format", [0, 1, 3, 6, 7])
def test_clouds_know_the_table_and_the_flags_of_their_file(point_format, tmp_path):
    tile = laspy.create(point_format=point_format, file_version="1.4")
    tile.x, tile.y, tile.z = np.random.default_rng(0).random((3, 30)) * 10
    tile.classification = np.full(30, 12)
    tile.withheld = np.arange(30) < 4
    tile.key_point = np.arange(30) > 20
    for name in ("a.las", "a.laz"):
        tile.write(tmp_path / name)
        cloud = read_point_cloud(tmp_path / name)
        assert cloud.label_codes == (CURRENT if point_format >= 6 else LEGACY) and (cloud.labels == 12).all()
        assert cloud.further is not None and [*cloud.further] == ["withheld"]
        assert np.flatnonzero(cloud.further["withheld"]).tolist() == [0, 1, 2, 3]
    # Flags follow their points.
    samples = read_point_cloud(tmp_path / "a.las", on_invalid="drop")
    assert samples.further is not None and len(samples.further["withheld"]) == len(samples)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("vegetation=3,4,5", 5),
        ("plants=5,4", 4),
        ("vegetation=3,5,64", 5),
        ("ground=2,8", 2),
        ("building=6,64", 6),
        ("cars=64", 64),
        ("other=2,3,4,5", 1),
        ("other=2,3,4,5:64", 64),
        ("hard=6,11", 1),
    ],
)
def test_files_get_a_code_for_a_merged_class_that_says_nothing_else(words, code):
    rule = ClassRule.parse(None, [words])
    name, codes = words.split("=")
    assert rule.class_of(int(codes.split(",")[0].split(":")[0]), CURRENT) == (name, code)


def test_numbers_outside_of_las_are_those_of_the_user():
    rule = ClassRule.parse(None, ["tooth=11,12,13"])
    assert rule.class_of(12, None) == ("tooth", 13) and not rule.is_ignored(1, None) and rule.is_ignored(-1, None)
    named = ClassRule.parse("0", ["ground=2,8"])
    assert not named.is_ignored(8, LEGACY) and not named.is_ignored(12, LEGACY) and named.is_ignored(0, LEGACY)
    assert not ClassRule.parse("none", None).is_ignored(0, LEGACY)
    with pytest.raises(ValueError):
        ClassRule.parse("8", ["ground=2,8"])


@pytest.mark.parametrize("words", ["3,5", "3,5,77", "vegetation:3,5", "a=2:3,4", "a=2:", "=2", "a=", "a=x", "a", ""])
def test_a_merge_in_another_form_is_told_the_form(words):
    with pytest.raises(ValueError, match=f"^--merge '{words}'; expected NAME=CODES, such as vegetation=3,5"):
        ClassRule.parse(None, [words])


def test_codes_to_merge_that_no_file_has_are_named():
    rule = ClassRule.parse(None, ["hard=6", "vegetation=3,99"])
    rule.check_in_files({2, 3, 6, 99})
    with pytest.raises(ValueError, match="vegetation=3,99: no point that counts has class 99; use vegetation=3$"):
        rule.check_in_files({2, 3, 6})
    with pytest.raises(ValueError, match="hard=6: no point that counts has class 6; expected some of 2, 3, 99"):
        rule.check_in_files({2, 3, 99}, may_lack=ASPRS_CLASSES)
    # One that the standard has may be missing beside others of its class.
    ClassRule.parse(None, ["vegetation=3,4,5"]).check_in_files({5}, may_lack=ASPRS_CLASSES)


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        (["a=5", "a=6"], "--merge has class a twice; give its codes at once, as in a=5,6"),
        (["a=5", "b=5"], "--merge has code 5 in two classes"),
        (["a=5:300"], "--merge 'a=5:300': files cannot have code 300"),
        (["a=5:-1"], "--merge 'a=5:-1': files cannot have code -1"),
    ],
)
def test_a_merge_that_contradicts_itself_is_told_what_to_write(merge, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        ClassRule.parse(None, merge)


def test_a_code_may_stand_twice_in_its_class_and_no_name_for_two_classes():
    assert ClassRule.parse(None, ["a=3,3,5"]).merged == {"a": (3, 5)}
    rule = ClassRule.parse(None, ["ground=5"])
    with pytest.raises(ValueError, match="class 2 has this name, too; use ground=5,2 to merge it, or another name"):
        Classes.among({2: 50, 5: 50}, rule, CURRENT, 1)


# Simulations of people without one kind of cone, of linear RGB. Source: Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, severity 1.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
# CIE 1931 from linear sRGB, and its white (D65).
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = (0.9505, 1.0, 1.089)


def lab(color: str, vision: str) -> np.ndarray:
    """CIELAB of a color as people of a vision see it."""
    values = parse_color(color).astype(float)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISIONS[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(TO_XYZ @ seen / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("plants", [3, 4, 5])
def test_ground_plants_and_buildings_have_different_colors_for_everybody(vision, plants):
    for one, other in itertools.combinations((2, plants, 6), 2):
        apart = np.linalg.norm(lab(ASPRS_COLORS[one], vision) - lab(ASPRS_COLORS[other], vision))
        assert apart >= 20, f"{one} and {other}: {apart:.0f}"
