"""A place as a whole, at each command: points far from all others, tiles without points, coordinate systems."""

import csv
import json
import warnings

import laspy
import numpy as np
import pytest
from laspy.vlrs.known import WktCoordinateSystemVlr

import hf_any3d
from hf_any3d.pipelines import default_model
from hf_any3d_survey.inventory.answer import rows_of
from hf_any3d_survey.tiles import training
from tests.cli.conftest import run
from tests.survey.test_tiles import drawn, write_tile
from tests.turns import by_turns

pytestmark = [pytest.mark.usefixtures("libraries_as_they_were"), pytest.mark.filterwarnings("always")]

STEP = 0.01
AWAY = "from all others"


def with_far(points):
    """The points with zeros before, among and after them, and a sentinel for a height; and which are their own."""
    zero = np.zeros((1, 3))
    no_height = np.array([[*points[0, :2], -9999.0]])
    half = len(points) // 2
    parts = [zero, points[:half], zero, no_height, points[half:], zero]
    is_own = np.concatenate([np.full(len(part), part is parts[1] or part is parts[4]) for part in parts])
    return np.concatenate(parts), is_own


def write_both(folder, number, name, labels=None):
    """Write a tile as it is and with far points, and return which points of the second are those of the first."""
    points, classes, returns = drawn(number)
    points = points.round(2)
    labels = np.ones(len(points)) if labels is None else classes
    both, is_own = with_far(points)
    spread = np.ones((2, len(both)))
    spread[:, is_own] = labels, returns
    write_tile(folder / f"clean/{name}", points, labels, returns, step=STEP)
    write_tile(folder / f"far/{name}", both, *spread, step=STEP)
    return is_own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    np.save(folder / "own.npy", write_both(folder, 7, "new.las"))
    return folder


@pytest.fixture
def is_own(folder):
    return np.load(folder / "own.npy")


def done(*words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(*words)
    assert found.code == 0, found.err + found.out
    return "\n".join([found.out, found.err, *(str(warning.message) for warning in caught)])


@pytest.mark.parametrize("options", [(), ("--noise",)])
def test_segment_labels_the_others_as_without_far_points(folder, is_own, options):
    copies = {}
    for kind in ("clean", "far"):
        copies[kind] = folder / f"segmented_{kind}{''.join(options)}.las"
        words = ("segment", default_model("point-cloud-inventory"), folder / kind / "new.las", *options)
        said = done(*words, "--output", copies[kind])
    assert "4 points of" in said and AWAY in said and "at 0, 0, 0" in said
    classes = {kind: np.asarray(laspy.read(copy).classification) for kind, copy in copies.items()}
    assert np.array_equal(classes["far"][is_own], classes["clean"])
    assert set(classes["far"][~is_own]) == {7 if "--noise" in options else 1}


def test_an_inventory_has_the_same_things_rasters_and_heights(folder, is_own):
    for kind in ("clean", "far"):
        place = folder / f"inventory_{kind}"
        place.mkdir()
        outputs = ("--table", place / "things.csv", "--dtm", place / "dtm.tif", "--chm", place / "chm.tif")
        said = done("inventory", folder / kind / "new.las", "--output", place / "new.las", *outputs)
    assert AWAY in said
    clean, far = (laspy.read(folder / f"inventory_{kind}/new.las") for kind in ("clean", "far"))
    for name in ("classification", "HeightAboveGround", "PredInstance", "PredScore"):
        assert np.array_equal(np.asarray(far[name])[is_own], np.asarray(clean[name])), name
    assert set(np.asarray(far.classification)[~is_own]) == {7}
    for name in ("HeightAboveGround", "PredInstance", "PredScore"):
        assert not np.asarray(far[name])[~is_own].any()
    for name in ("things.csv", "dtm.tif", "chm.tif"):
        assert (folder / f"inventory_clean/{name}").read_bytes() == (folder / f"inventory_far/{name}").read_bytes(), (
            name
        )


def test_an_inventory_of_tiles_is_that_without_far_points_and_without_tiles_that_are_empty_or_elsewhere(
    folder, is_own
):
    points = drawn(7)[0].round(2)
    east = points[:, 0] > np.median(points[:, 0])
    copies = {}
    for kind in ("clean", "far"):
        place = folder / f"tiles_{kind}"
        for name, part in (("east.las", east), ("west.las", ~east)):
            own = points[part] if kind == "clean" else with_far(points[part])[0]
            write_tile(place / name, own, np.ones(len(own)), np.ones(len(own)), step=STEP)
        if kind == "far":
            write_tile(place / "empty.las", np.zeros((0, 3)), [], step=STEP)
            write_tile(place / "zeros.las", np.zeros((5, 3)), np.ones(5), np.ones(5), step=STEP)
        said = done("inventory", place, "--output", folder / f"copies_{kind}", "--table", folder / f"tiles_{kind}.csv")
        copies[kind] = {path.name: laspy.read(path) for path in (folder / f"copies_{kind}").iterdir()}
    assert "empty.las: has no points" in said and "zeros.las: its 5 points lie" in said
    assert sorted(copies["far"]) == ["east.las", "west.las"]
    for name, part in (("east.las", east), ("west.las", ~east)):
        own = with_far(points[part])[1]
        for column in ("classification", "PredInstance"):
            assert np.array_equal(np.asarray(copies["far"][name][column])[own], copies["clean"][name][column])
        heights = (np.asarray(copies[kind][name]["HeightAboveGround"]) for kind in ("far", "clean"))
        with_far_points, without = heights
        # Coordinates are stored from another origin.
        np.testing.assert_allclose(with_far_points[own], without, atol=1e-3)
    assert (folder / "tiles_clean.csv").read_text() == (folder / "tiles_far.csv").read_text()


def test_python_says_which_points_are_far_and_answers_the_rest_alike(folder, is_own):
    files = {kind: str(folder / kind / "new.las") for kind in ("clean", "far")}
    from transformers import pipeline

    model = default_model("point-cloud-inventory")
    labels = pipeline("point-cloud-segmentation", model)
    found = {kind: labels(file) for kind, file in files.items()}
    for name in ("labels", "scores", "unknown"):
        assert np.array_equal(found["far"][name][is_own], found["clean"][name]), name
    assert np.array_equal(found["far"]["far"], ~is_own) and found["far"]["noise"][~is_own].all()
    assert not found["far"]["scores"][~is_own].any() and "far" not in found["clean"]
    assert [part["mask"].sum() for part in found["far"]["segments"]] == [
        part["mask"].sum() for part in found["clean"]["segments"]
    ]
    things = {kind: pipeline("point-cloud-inventory")(file) for kind, file in files.items()}
    assert rows_of(things["far"]["things"]) == rows_of(things["clean"]["things"])
    tile = laspy.read(files["far"])
    returns = {"return_number": tile.return_number, "number_of_returns": tile.number_of_returns}
    assert np.array_equal(hf_any3d.segment(tile.xyz, model=labels, **returns).labels[is_own], found["clean"]["labels"])
    described = labels.feature_extractor(files["far"], return_tensors="pt")["points"]
    assert float(described[0, :, :3].abs().max()) < 1000, "no far point is drawn"


def test_suggested_points_are_the_same_and_their_rows_those_of_the_file(folder, is_own):
    rows = {}
    for kind in ("clean", "far"):
        path = folder / f"asked_{kind}.csv"
        said = done("data", "suggest", folder / kind / "new.las", "--points", 20, "--output", path)
        with open(path, newline="") as file:
            rows[kind] = list(csv.DictReader(file))
    assert AWAY in said
    numbers = np.flatnonzero(is_own)
    for one, other in zip(rows["clean"], rows["far"], strict=True):
        assert numbers[int(one.pop("row"))] == int(other.pop("row")) and one == other
    page = folder / "asked.html"
    done("data", "suggest", folder / "far/new.las", "--points", 20, "--output", page)
    assert page.stat().st_size > 10_000


def test_a_check_tells_of_far_points_and_of_systems_and_describes_the_rest(folder, tmp_path):
    said = {kind: done("data", "check", folder / kind / "new.las") for kind in ("clean", "far")}
    assert AWAY in said["far"] and AWAY not in said["clean"]
    density = [line for line in said["clean"].splitlines() if "density" in line]
    assert density and density[0] in said["far"]
    points = drawn(7)[0].round(2)
    for number, system in enumerate((32631, 32632)):
        write_in(tmp_path / f"{number}.las", points, system)
    said = done("data", "check", tmp_path)
    assert "coordinate systems differ: EPSG:32631" in said and "EPSG:32632" in said and "overlapping" not in said


@pytest.mark.slow
def test_a_model_of_tiles_learns_and_is_judged_as_without_far_points_and_empty_tiles(folder, monkeypatch):
    monkeypatch.setattr(training, "_FOLD_STEPS", 10)
    monkeypatch.setattr(training, "STEPS", 20)
    figures = {}
    for kind in ("clean", "far"):
        place = folder / "learned"
        for number in range(2):
            write_both(place, number, f"{number}.las", labels=True)
        if kind == "far":
            write_tile(place / "far/empty.las", np.zeros((0, 3)), [])
        model = folder / f"model_{kind}"
        done("train", place / kind, "--folds", 2, "--points", 800, "--output", model)
        figures[kind] = [json.loads((model / "metrics.json").read_text())["metrics"]]
        figures[kind].append(json.loads(run("evaluate", model, place / kind, "--json").out)["metrics"])
    assert figures["far"] == figures["clean"]
    # Answers about far points are refused, and others are found by their rows in the file.
    asked = folder / "asked_to_answer.csv"
    done("data", "suggest", folder / "far/new.las", "--points", 20, "--output", asked)
    with open(asked, newline="") as file:
        table = [{**row, "class": row["guess"]} for row in csv.DictReader(file)][:15]
    write_answers(folder / "answers.csv", table)
    scene = default_model("point-cloud-inventory")
    words = ("train", folder / "answers.csv", folder / "far/new.las", "--from", scene, "--output")
    assert "15 points added" in done(*words, folder / "added")
    of_far = {"tile": "new.las", "row": 0, "x": 0, "y": 0, "z": 0, "class": "ground"}
    write_answers(folder / "answers.csv", [*table, of_far])
    refused = run(*words, folder / "added_far")
    assert refused.code == 1 and "answers.csv: line 17: row 0 of new.las is far from all other points" in refused.err


def write_answers(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, ["tile", "row", "x", "y", "z", "class"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize("command", ["inventory", "segment", "train", "evaluate"])
def test_a_folder_of_empty_tiles_alone_is_an_error_that_says_so(tmp_path, command):
    for name in ("a.las", "b.las"):
        write_tile(tmp_path / f"tiles/{name}", np.zeros((0, 3)), [])
    model = default_model("point-cloud-inventory")
    words = {
        "inventory": (tmp_path / "tiles", "--output", tmp_path / "out"),
        "segment": (model, tmp_path / "tiles", "--output", tmp_path / "out"),
        "train": (tmp_path / "tiles", "--task", "segmentation", "--output", tmp_path / "out"),
        "evaluate": (model, tmp_path / "tiles"),
    }
    refused = run(command, *words[command])
    assert refused.code == 1 and ("no points" in refused.err or "has points" in refused.err), refused.err
    assert "damaged" not in refused.err


def test_segment_of_a_folder_leaves_out_empty_tiles_with_a_word(tmp_path):
    points, _, returns = drawn(7)
    write_tile(tmp_path / "tiles/a.las", points[:3000], np.ones(3000), returns[:3000])
    write_tile(tmp_path / "tiles/b.las", np.zeros((0, 3)), [])
    said = done("segment", default_model("point-cloud-inventory"), tmp_path / "tiles", "--output", tmp_path / "out")
    assert "b.las: has no points, and is left out" in said and (tmp_path / "out/a.las").is_file()


def wkt(system):
    import rasterio.crs

    return rasterio.crs.CRS.from_user_input(system).to_wkt()


def write_in(path, points, system, keys=None):
    """Write a tile in a coordinate system: well-known text, a number of EPSG, keys of GeoTIFF, or None."""
    header = laspy.LasHeader(version="1.4" if keys is None else "1.2", point_format=6 if keys is None else 1)
    header.scales, header.offsets = [STEP] * 3, np.floor(points.min(axis=0))
    if keys is not None:
        numbers = [number for key, value in keys.items() for number in (key, 0, 1, value)]
        record = np.array([1, 1, 0, len(keys), *numbers], "<u2").tobytes()
        header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", record))
    elif system is not None:
        header.vlrs.append(WktCoordinateSystemVlr(system if isinstance(system, str) else wkt(f"EPSG:{system}")))
        header.global_encoding.wkt = True
    tile = laspy.LasData(header)
    tile.x, tile.y, tile.z = points.T
    tile.return_number = tile.number_of_returns = np.ones(len(points), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    tile.write(path)


NO_NUMBER = (
    'PROJCS["ETRS_1989_UTM_Zone_32N",GEOGCS["GCS_ETRS_1989",DATUM["D_ETRS_1989",SPHEROID["GRS_1980",6378137.0,'
    '298.257222101]],PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["False_Easting",500000.0],PARAMETER["False_Northing",0.0],PARAMETER["Central_Meridian",9.0],'
    'PARAMETER["Scale_Factor",0.9996],PARAMETER["Latitude_Of_Origin",0.0],UNIT["Meter",1.0]]'
)
KEYS = {number: {1024: 1, 3072: number, 3076: 9001} for number in (25832, 25833, 2154)}


# Each a system of the first and of the second tile, and whether they are one
SYSTEMS = {
    "two zones": (25832, 25833, False),
    "two datums": (32632, 25832, False),
    "a projection and another": (25832, 2154, False),
    "the same": (25832, 25832, True),
    "text and keys": (25832, KEYS[25832], True),
    "text and keys of another": (25833, KEYS[25832], False),
    "keys and keys": (KEYS[25832], KEYS[25833], False),
    "keys of no zone": (KEYS[25832], KEYS[2154], False),
    "with and without a number": (25832, NO_NUMBER, True),
    "without a number, another zone": (25833, NO_NUMBER, False),
    "without a number, keys": (NO_NUMBER, KEYS[25832], True),
    "without a number, keys of another": (NO_NUMBER, KEYS[25833], False),
    "without a number, keys of no zone": (NO_NUMBER, KEYS[2154], False),
    "one without": (None, 25832, True),
    "both without": (None, None, True),
    "heights of one": (25832, "EPSG:25832+7837", True),
    "heights that differ": ("EPSG:25832+7837", "EPSG:25832+5783", False),
    "heights alike": ("EPSG:25832+7837", "EPSG:25832+7837", True),
}


@pytest.mark.parametrize(("name", "turned"), by_turns(SYSTEMS, [False, True]))
def test_tiles_of_two_coordinate_systems_are_no_place(tmp_path, name, turned):
    *both, are_one = SYSTEMS[name]
    points = drawn(7)[0].round(2)
    east = points[:, 0] > np.median(points[:, 0])
    for file, system, part in zip(("a.las", "b.las"), both[:: -1 if turned else 1], (east, ~east), strict=True):
        keys = system if isinstance(system, dict) else None
        if isinstance(system, str) and system.startswith("EPSG"):
            system = wkt(system)
        write_in(tmp_path / file, points[part], system, keys)
    found = run("inventory", tmp_path / "a.las", tmp_path / "b.las", "--table", tmp_path / "things.gpkg", "--json")
    said = found.err
    if are_one:
        assert found.code == 0, said
        import pyogrio

        # That of the tile that has one
        system = pyogrio.read_info(tmp_path / "things.gpkg")["crs"]
        assert (system is None) == (both == [None, None]) and (system is None or "32N" in system or "25832" in system)
        return
    assert found.code == 1 and "b.las: its coordinate system is" in said and "a.las" in said
    for system in both:
        number = system[3072] if isinstance(system, dict) else system
        shown = "ETRS89 / UTM zone 32N" if number == NO_NUMBER else str(number).split("+")[-1]
        assert shown in said, (shown, said)
