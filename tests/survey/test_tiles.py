"""A few labeled tiles in LAS: what is wrong with them, and in which units they are."""

import json
import shutil

import laspy
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d_survey.processor import LocalFeaturesProcessor
from hf_any3d_survey.tiles import training
from hf_any3d_survey.tiles.confidence import TilesEstimate
from hf_any3d_survey.tiles.reading import digest_of
from tests.cli.conftest import run
from tests.training.generated_tiles import draw_tile

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

# Keys of GeoTIFF: 1024 kind of system, 3076 unit of x and y, 4099 unit of heights; 9001 meters, 9003 US survey feet.
METERS = {3076: 9001}
FEET = {3076: 9003}
HIGH_FEET = {3076: 9001, 4099: 9003}
DEGREES = {1024: 2}
FOOT = 1200 / 3937
CORNER = np.array([500_000.0, 5_000_000.0, 0.0])


def write_tile(path, points, labels, returns=None, *, unit=METERS, step=1e-4, colors=False):
    """Write points (points, 3) as they are, in a coordinate system with these keys."""
    header = laspy.LasHeader(point_format=2 if colors else 1, version="1.2")
    header.offsets = np.floor(points.min(axis=0)) if len(points) else np.zeros(3)
    header.scales = np.broadcast_to(step, 3)
    keys = [number for key, value in unit.items() for number in (key, 0, 1, value)]
    header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", np.array([1, 1, 0, len(unit), *keys], "<u2").tobytes()))
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = points.T
    scan.classification = np.asarray(labels, np.uint8)
    if returns is not None:
        scan.return_number = np.ones(len(points), np.uint8)
        scan.number_of_returns = returns.astype(np.uint8)
    if colors:
        scan.red = scan.green = scan.blue = np.full(len(points), 30_000, np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.write(str(path))


def drawn(number, place=0):
    """Points of a tile in meters on the map, 300 m apart for each place, with classes and returns."""
    points, labels, returns = draw_tile(number)
    return (points + CORNER + (300 * place, 0, 0)).round(4), labels, returns


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module")
def learned(folder):
    """A model of tiles with all that may differ between them, and what was said about it."""
    for number in range(3):
        write_tile(folder / f"tiles/{number}.las", *drawn(number, number))
    points, labels, _ = drawn(3, 2)
    # On the third place, in feet, with colors, without returns and without buildings.
    kept = labels != 6
    write_tile(folder / "tiles/feet.las", points[kept] / FOOT, labels[kept], unit=FEET, colors=True)
    write_tile(folder / "tiles/nobody.las", points, np.ones(len(points)))
    write_tile(folder / "tiles/empty.las", np.zeros((0, 3)), [])
    # Six points of water, too few of it to be learned
    write_tile(folder / "tiles/few.las", points[:6], np.full(6, 9))
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as remarks:
        # Enough for three classes, and a fifth of the time.
        patch.setattr(training, "_FOLD_STEPS", 100)
        patch.setattr(training, "STEPS", 200)
        # The files say that points are labeled, and no folder names a class.
        done = run("train", folder / "tiles", "--folds", 2, "--points", 6000, "--output", folder / "model")
    assert done.code == 0, done.err
    return done.out, "\n".join(str(remark.message) for remark in remarks)


def test_each_difference_between_tiles_is_named(learned):
    out, said = learned
    assert "4 tiles of 3 sites" in out
    assert "classes differ: building is in 3 of 4 files" in said
    assert "returns: not used; missing in feet.las" in said and "colors: not used; missing in 0.las" in said
    assert "overlap: 2.las and feet.las" in said or "overlap: feet.las and 2.las" in said
    assert "coordinates of 1 of 4 tiles are in feet" in said
    assert "nobody.las: no point has a usable class" in said
    assert "skipped" in said and "empty.las" in said
    assert "few.las: all its classes have fewer than 20 points in total" in said
    assert "classes not trained, with fewer than 20 points: water (6)" in said


def labels_of(folder, name):
    copy = folder / f"{name}_labeled.las"
    done = run("segment", folder / f"{name}.las", "--model", folder / "model", "--output", copy)
    assert done.code == 0, done.err
    return np.asarray(laspy.read(str(copy)).classification)


def test_a_tile_in_feet_or_with_feet_for_heights_gets_the_labels_of_the_same_one_in_meters(folder, learned):
    points, labels, returns = drawn(7)
    write_tile(folder / "meters.las", points, labels, returns)
    write_tile(folder / "feet.las", points / FOOT, labels, returns, unit=FEET)
    write_tile(folder / "high.las", points / (1, 1, FOOT), labels, returns, unit=HIGH_FEET)
    expected = labels_of(folder, "meters")
    known = labels != 1
    assert (expected == labels)[known].mean() > 0.8
    # Files round to a tenth of a millimeter, by which a point may change its voxel.
    assert (labels_of(folder, "feet") == expected).mean() > 0.998
    assert (labels_of(folder, "high") == expected).mean() > 0.998


def test_the_axis_that_points_up_is_the_given_one_but_for_las(folder, learned, tmp_path, monkeypatch):
    words = ("train", folder / "tiles", "--task", "segmentation", "--output", tmp_path / "none")
    refused = run(*words, "--up-axis", "x")
    assert refused.code == 1 and "--up_axis x: in 0.las" in refused.err
    refused = run(*words, "--from", folder / "model")
    assert refused.code == 1 and "no answers" in refused.err
    points = np.random.default_rng(0).uniform(-1, 1, (600, 3))
    for number in range(2):
        cloud = PointCloudData(points + number / 100, labels=(points[:, 1] > 0).astype(int))
        write_point_cloud(tmp_path / f"{number}.ply", cloud)
    monkeypatch.setattr(training, "OBJECT_STEPS", 20)
    objects = (tmp_path / "0.ply", tmp_path / "1.ply", "--task", "segmentation", "--up-axis", "y")
    done = run("train", *objects, "--output", tmp_path / "model")
    assert done.code == 0, done.err
    assert LocalFeaturesProcessor.from_pretrained(tmp_path / "model").up_axis == "y"


def test_a_folder_with_splits_is_judged_by_its_test_tiles(folder, learned):
    for split, number in (("train", 0), ("test", 7), ("test", 8)):
        write_tile(folder / f"splits/{split}/{number}.las", *drawn(number))
    page = folder / "evaluation.html"
    done = run("evaluate", folder / "model", folder / "splits", "--json", "--output", page)
    assert done.code == 0 and "7.las" in done.out and "0.las" not in done.out
    text = page.read_text()
    assert "<title>Evaluation of model on splits</title>" in text and "Confusion matrix" in text
    # Two runs are compared by the same figure, which is that of all tiles together.
    shutil.copytree(folder / "model", folder / "again", dirs_exist_ok=True)
    compared = run("compare", folder / "model", folder / "again", "--on", folder / "splits", "--json")
    facts = json.loads(compared.out)
    assert compared.code == 0 and facts["metric"] == "mean_iou" and facts["scans"] == 2, compared.err
    assert facts["runs"][0]["value"] == pytest.approx(json.loads(done.out)["metrics"]["all"]["mean_iou"])
    assert facts["runs"][1]["difference"] == 0 and facts["runs"][1]["p_value"] == 1
    refused = run("evaluate", folder / "model", folder / "splits", "--seed", 3)
    assert refused.code != 0 and "--seed has no effect" in refused.err


TAKEN = "no coordinate system: assuming meters"


def test_a_tile_that_says_no_unit_is_in_the_given_one_or_taken_for_meters_with_a_word(folder, learned):
    points, labels, returns = drawn(11)
    write_tile(folder / "said.las", points, labels, returns)
    expected = labels_of(folder, "said")
    for name, length in (("feet", 0.3048), ("us-feet", FOOT), ("meters", 1.0)):
        write_tile(folder / f"unsaid_{name}.las", points / length, labels, returns, unit={})
        copy = folder / f"unsaid_{name}_labeled.las"
        words = ("segment", folder / f"unsaid_{name}.las", "--model", folder / "model")
        done = run(*words, "--unit", name, "--output", copy)
        assert done.code == 0 and TAKEN not in done.err, done.err
        assert (np.asarray(laspy.read(str(copy)).classification) == expected).mean() > 0.998
        checked = run("data", "check", folder / f"unsaid_{name}.las", "--unit", name)
        assert f"unit: {name.replace('us-', 'US survey ')}" in checked.out and TAKEN not in checked.out + checked.err
    done = run("segment", folder / "unsaid_meters.las", folder / "unsaid_feet.las", "--model", folder / "model")
    assert done.code == 0 and done.err.count(TAKEN) == 1
    assert run("segment", folder / "said.las", "--model", folder / "model").err.count(TAKEN) == 0
    checked = run("data", "check", folder / "unsaid_meters.las")
    assert checked.code == 0 and checked.out.count(TAKEN) == 1 and "unit:" not in checked.out
    # A file that says its unit keeps it.
    done = run("segment", folder / "said.las", "--model", folder / "model", "--unit", "feet")
    assert done.code == 0 and "the file states a unit of 1 m, so" in done.err
    done = run("evaluate", folder / "model", folder / "unsaid_feet.las", "--unit", "feet", "--json")
    assert done.code == 0 and TAKEN not in done.err


def test_training_says_once_which_tiles_are_taken_for_meters(folder, learned, monkeypatch):
    monkeypatch.setattr(training, "_FOLD_STEPS", 10)
    monkeypatch.setattr(training, "STEPS", 10)
    for number in range(2):
        write_tile(folder / f"unsaid/{number}.las", *drawn(number, number), unit={})
    words = ("train", folder / "unsaid", "--task", "segmentation", "--folds", 2, "--output")
    with pytest.warns(UserWarning) as remarks:
        assert run(*words, folder / "unsaid_model").code == 0
    said = "\n".join(str(remark.message) for remark in remarks)
    assert said.count(TAKEN) == 1 and f"{TAKEN} (2 of 2: 0.las, 1.las)" in said
    with pytest.warns(UserWarning) as remarks:
        assert run(*words, folder / "unsaid_feet_model", "--unit", "feet").code == 0
    said = "\n".join(str(remark.message) for remark in remarks)
    assert TAKEN not in said and "coordinates of 2 of 2 tiles are in feet" in said


@pytest.mark.parametrize("unit", [DEGREES, {}])
def test_tiles_in_degrees_are_refused(folder, learned, unit):
    points, labels, returns = drawn(8)
    degrees = (points - CORNER) / (78_000, 111_000, 1) + (2.35, 48.85, 0)
    tiles = folder / f"degrees_{len(unit)}"
    write_tile(tiles / "a.las", degrees, labels, returns, unit=unit, step=[1e-8, 1e-8, 1e-3])
    for words in (
        ("train", tiles, "--task", "segmentation", "--output", folder / "none"),
        ("segment", tiles / "a.las", "--model", folder / "model"),
        ("evaluate", folder / "model", tiles),
        ("data", "check", tiles),
    ):
        done = run(*words)
        assert done.code in (1, 2) and "a.las: " in done.err and "coordinates are in degrees" in done.err, words


def test_tiles_of_one_class_or_of_none_are_refused(folder):
    points, _, _ = drawn(9)
    write_tile(folder / "one/a.las", points[:500], np.full(500, 2))
    done = run("train", folder / "one", "--task", "segmentation", "--output", folder / "none")
    assert done.code == 1 and "one class (ground)" in done.err
    write_tile(folder / "unclassified/a.las", points[:500], np.zeros(500))
    with pytest.warns(UserWarning, match="a.las: no point has a usable class"):
        done = run("train", folder / "unclassified", "--task", "segmentation", "--output", folder / "none")
    assert done.code == 1 and "labeled points" in done.err


def test_classes_of_las_have_the_colors_that_surveyors_know(folder):
    points, labels, returns = drawn(10)
    write_tile(folder / "shown.las", points, labels, returns)
    assert run("show", folder / "shown.las", "--output", folder / "shown.html").code == 0
    page = (folder / "shown.html").read_text()
    # Ground, high vegetation and building.
    assert all(color in page for color in ("#d2b48c", "#06553f", "#e6550d"))


def test_what_has_no_effect_on_labeled_points_is_refused_by_its_name(folder, learned, tmp_path):
    words = ("train", folder / "tiles", "--output", tmp_path / "none")
    for more, named in (
        (("--merge", "a=2,6", "--epochs", 3), "--merge has no effect with --epochs"),
        (("--merge", "a=2,6", "--way", "trained"), "--merge has no effect on a network that is trained"),
        (("--task", "classification"), "--task segmentation"),
        (("--task", "classification", "--merge", "a=2,6"), "--task segmentation"),
    ):
        refused = run(*words, *more)
        assert refused.code == 1 and named in refused.err, (more, refused.err)


def test_a_folder_of_labeled_text_is_one_of_labeled_points_and_one_without_labels_is_told(tmp_path, monkeypatch):
    points = np.random.default_rng(0).uniform(-1, 1, (600, 3)).round(3)
    (tmp_path / "texts").mkdir()
    (tmp_path / "bare").mkdir()
    for number in range(2):
        rows = np.column_stack([points + number / 100, points[:, 1] > 0])
        np.savetxt(tmp_path / f"texts/{number}.txt", rows, "%.3f %.3f %.3f %d", header="x y z label", comments="")
        np.savetxt(tmp_path / f"bare/{number}.xyz", points, "%.3f")
    monkeypatch.setattr(training, "OBJECT_STEPS", 20)
    done = run("train", tmp_path / "texts", "--output", tmp_path / "model")
    assert done.code == 0 and "2 objects" in done.out, done.err
    refused = run("train", tmp_path / "bare", "--output", tmp_path / "none")
    assert refused.code == 1 and "the folder contains no class folders" in refused.err


def write_with_columns(path, number, columns=("reflectance", "deviation")):
    """Write a tile whose road is ground that reflects less, and return its classes; nothing else tells them apart."""
    points, _, _ = drawn(number, number)
    generator = np.random.default_rng(number)
    is_road = generator.random(len(points)) < 0.5
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.offsets = np.floor(points.min(axis=0))
    header.scales = np.full(3, 1e-4)
    for name in columns:
        header.add_extra_dim(laspy.ExtraBytesParams(name, "i2", scales=np.array([0.01]), offsets=np.array([-10.0])))
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = points.T
    scan.classification = np.where(is_road, 11, 2).astype(np.uint8)
    for name in columns:
        is_told = name == "reflectance"
        scan[name] = np.where(is_road & is_told, -15.0, -5.0) + generator.normal(size=len(points))
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.write(str(path))
    return np.where(is_road, 11, 2)


def test_extra_dimensions_are_features_and_a_tile_without_them_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_FOLD_STEPS", 60)
    monkeypatch.setattr(training, "STEPS", 60)
    for number in range(2):
        write_with_columns(tmp_path / f"tiles/{number}.laz", number)
    truth = write_with_columns(tmp_path / "new.laz", 5)
    words = ("train", tmp_path / "tiles", "--points", 1500, "--edges", 1, 2)
    right = {}
    for name, features in (("with", ("--features", "Reflectance,deviation")), ("without", ())):
        done = run(*words, *features, "--output", tmp_path / name)
        assert done.code == 0, done.err
        done = run("segment", tmp_path / "new.laz", "--model", tmp_path / name, "--output", tmp_path / f"{name}.laz")
        assert done.code == 0, done.err
        labeled = laspy.read(str(tmp_path / f"{name}.laz"))
        right[name] = (np.asarray(labeled.classification) == truth).mean()
        assert ("columns" in (tmp_path / name / "preprocessor_config.json").read_text()) == bool(features)
    assert right["with"] > 0.9 and right["without"] < 0.6
    # Also in many files, and by evaluation
    many = ("--output", tmp_path / "many", "--resume")
    done = run("segment", tmp_path / "new.laz", "--model", tmp_path / "with", *many)
    assert done.code == 0, done.err
    labeled = laspy.read(str(tmp_path / "many/new.laz"))
    assert (np.asarray(labeled.classification) == truth).mean() == right["with"]
    done = run("evaluate", tmp_path / "with", tmp_path / "new.laz", "--json")
    assert done.code == 0, done.err
    # Named are the column and what there is instead.
    write_with_columns(tmp_path / "poor.laz", 6, ["deviation"])
    refused = run("segment", tmp_path / "poor.laz", "--model", tmp_path / "with", "--output", tmp_path / "no.laz")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1
    assert "poor.laz" in refused.err and "'Reflectance'" in refused.err and "deviation" in refused.err
    refused = run(*words, "--features", "amplitude", "--output", tmp_path / "none")
    assert refused.code == 1 and "'amplitude'" in refused.err and "deviation" in refused.err
    # What a point is must not tell what it is.
    refused = run(*words, "--features", "classification", "--output", tmp_path / "none")
    assert refused.code == 1 and "classification" in refused.err


def test_a_card_and_a_line_name_what_wrong_points_are_predicted_as():
    matrix = np.array([[90, 10, 0], [0, 50, 0], [1, 0, 299]])
    estimate = TilesEstimate(np.stack([matrix, matrix]), ["ground", "wood", "roof"], "2 training runs", "site")
    rows = [line.split(" | ") for line in estimate.section().splitlines()[4:]]
    assert [row[-1] for row in rows] == ["wood (10 %) |", "none |", "none |"]
    assert [line.partition(", mostly predicted as ")[2] for line in estimate.lines()[1:]] == ["wood (10 %)", "", ""]


def test_the_checksum_of_a_tile_of_any_size_depends_on_no_order_and_gives_no_warning():
    points = np.random.default_rng(0).random((70_000, 3), dtype=np.float32)
    with np.errstate(over="raise"):
        assert digest_of(points) == digest_of(points[::-1]) != digest_of(points[1:])
