"""Answers about points: one reader for all tables that people save, one answer for each point, and honest folds."""

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.labels.las_points import write_some_points
from hf_any3d_survey.tiles.adding import name_answers
from hf_any3d_survey.tiles.answers import (
    ROW,
    is_answers,
    one_for_each_point,
    read_all_answers,
    read_answers,
    tile_of_each,
)
from hf_any3d_survey.tiles.places import places_of, remarks_on_copies, twins_of
from hf_any3d_survey.tiles.reading import look_at
from tests.errors import raises
from tests.survey.test_suggestions import config_of
from tests.survey.test_tiles import write_tile

HEADER = ["tile", "row", "x", "y", "z", "class"]
# Rows of a tile with the classes that people give them
GIVEN = {3: "ground", 4: "building", 17: "vegetation", 40: "ground", 41: "Café, außen"}
POINTS = (np.random.default_rng(0).uniform(0, 50, (60, 3)) + (500_000, 5_000_000, 100)).round(3)
CLOUD = PointCloudData(POINTS, meters_per_unit=1.0)


def rows_of(given=None, tile="new.las"):
    return [
        [tile, str(row), *(f"{value:.3f}" for value in POINTS[row]), name] for row, name in (given or GIVEN).items()
    ]


def text_of(rows, delimiter=",", *, decimal=".", header=HEADER, quote=False, end="\n"):
    lines = []
    for cells in [header, *rows]:
        shown = [cell.replace(".", decimal) if place in (2, 3, 4) else cell for place, cell in enumerate(cells)]
        quoted = [f'"{cell}"' if quote or delimiter in cell else cell for cell in shown]
        lines.append(delimiter.join(quoted))
    return end.join(lines) + end


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
FORMS = {
    "as written": {},
    "Windows lines": {"end": "\r\n"},
    "lines of old Macs": {"end": "\r"},
    "quoted": {"quote": True},
    "capitals and blanks": {"header": [" Tile", "ROW ", "X", "y", " Z ", "Class"]},
    "quoted decimal commas": {"decimal": ",", "quote": True},
}
FORMS |= {f"columns by {name}": {"delimiter": by} for name, by in (("semicolons", ";"), ("tabs", "\t"), ("bars", "|"))}
FORMS |= {
    f"{name}, decimal commas": {**form, "decimal": ","} for name, form in [*FORMS.items()] if "delimiter" in form
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FORMS)
def test_any_table_that_a_spreadsheet_saves_has_the_same_answers(tmp_path, name, encoding):
    path = tmp_path / "answers.csv"
    path.write_bytes(text_of(rows_of(), **FORMS[name]).encode(encoding))
    assert is_answers(path)
    found = read_answers(path)
    assert found.classes == [*GIVEN.values()] and found.rows.tolist() == [*GIVEN]
    assert np.array_equal(found.places, POINTS[[*GIVEN]]) and found.tiles == ["new.las"] * len(GIVEN)
    assert tile_of_each(found, {tmp_path / "new.las": CLOUD}, True).tolist() == [0] * len(GIVEN)


CELLS = {
    "sep=;": (lambda text: "sep=;\n" + text.replace(",", ";"), None),
    "empty lines": (lambda text: "\n" + text.replace("\n", "\n\n"), None),
    "rows of no cells": (lambda text: text + ",,,,,\n", None),
    "rows of a spreadsheet, 3.0": (lambda text: text.replace(",3,", ",3.0,"), None),
    "a path as tile": (lambda text: text.replace("new.las", "C:\\scans\\NEW.las"), None),
    "more columns": (lambda text: text.replace("class", "class,by"), None),
    "no tile": (lambda text: text.replace("tile", "of"), None),
    "an escaped name": (lambda text: text.replace("building", "'-building"), "-building"),
    "another tile": (lambda text: text.replace("new.las", "old.las"), "line 2: its points belong to old.las"),
    "no number": (lambda text: text.replace("500", "five hundred"), "line 2: x is"),
    "infinite": (lambda text: text.replace("3,500", "3,inf,5"), "line 2"),
    "no whole row": (lambda text: text.replace(",17,", ",1.5,"), "line 4: row is '1.5'; expected a whole number"),
    "thousands": (lambda text: text.replace(",3,", ',"1.234,5",'), "line 2: row is '1.234,5'"),
    "decimal commas between commas": (lambda text: text.replace("500", "500,0"), "separate columns by semicolons"),
    "no column": (lambda text: text.replace("z", "height"), "no column 'z'"),
    "a column twice": (lambda text: text.replace("tile,row", "y,row"), "column 'y' occurs twice"),
    "no class": (
        lambda text: "\n".join(line.rsplit(",", 1)[0] + "," for line in text.splitlines()),
        "no column 'class'",
    ),
    "a code that is none": (lambda text: text.replace("building", "300"), "line 3: class '300'"),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_mean_what_they_say_or_the_error_names_their_line(tmp_path, name):
    change, expected = CELLS[name]
    path = tmp_path / "answers.csv"
    given = {row: said for row, said in GIVEN.items() if "," not in said}
    path.write_text(change(text_of(rows_of(given))))
    tiles = {tmp_path / "new.las": CLOUD}
    if expected is None or expected.startswith("-"):
        found = read_answers(path)
        assert tile_of_each(found, tiles, True).tolist() == [0] * len(given)
        assert found.classes == [expected if said == "building" and expected else said for said in given.values()]
        return
    with raises(ValueError, naming=expected):
        tile_of_each(read_answers(path), tiles, True)


def written(tmp_path, given, name="answers.csv"):
    path = tmp_path / name
    path.write_text(text_of(rows_of(given)))
    return path


@pytest.mark.parametrize(
    ("said", "label"),
    [
        *(("ground", 0), ("GROUND", 0), (" Ground ", 0), ("2", 0), ("2.0", 0), ("2,0", 0), ("02", 0)),
        *(("vegetation", 1), ("High Vegetation", 1), ("high_vegetation", 1), ("3", 1), ("4", 1), ("5", 1)),
        *(("Low  vegetation", 1), ("building", 2), ("6", 2), ("0", None), ("1", None), ("", None)),
    ],
)
def test_names_and_codes_are_the_classes_of_the_model(tmp_path, said, label):
    path = tmp_path / "answers.csv"
    path.write_text(text_of(rows_of({3: "ground", 4: said}), ";"))
    named = name_answers(read_answers(path), config_of())
    assert named.new == [] and named.labels.tolist() == [0, *([] if label is None else [label])]


def test_a_new_class_has_one_name_and_a_code_names_it(tmp_path):
    given = {row: ("Water" if row % 2 == 0 else "water ") for row in range(10)} | {row: "9" for row in range(10, 20)}
    named = name_answers(read_answers(written(tmp_path, given)), config_of())
    assert named.new == ["Water"] and named.codes[3] == 9 and named.labels.tolist() == [3] * 20
    with raises(ValueError, naming="answers.csv: line 3: class 'grond' is new"):
        name_answers(read_answers(written(tmp_path, {3: "ground", 4: "grond"})), config_of())


def kept_of(paths, tiles):
    answers = read_all_answers(paths)
    tile_of = tile_of_each(answers, tiles, True)
    named = name_answers(answers, config_of())
    return answers, one_for_each_point(answers, named.labels, named.names, [*tiles.values()], tile_of)


def test_a_point_counts_once_in_any_number_of_files_and_rows(tmp_path):
    tile = tmp_path / "new.las"
    write_tile(tile, POINTS, np.ones(len(POINTS)), step=0.001)
    first = written(tmp_path, {3: "ground", 4: "building"})
    again = written(tmp_path, {3: "2", 4: "Building ", 17: "ground"}, "answers (1).csv")
    rows = np.array([3, 17, 40])
    write_some_points(tile, tmp_path / "asked.las", rows, {ROW: rows})
    import laspy

    asked = laspy.read(tmp_path / "asked.las")
    asked.classification = [2, 2, 6]
    asked.write(tmp_path / "asked.las")
    # A copy of the tile, in another order, has the same points.
    copy = PointCloudData(POINTS[::-1].copy(), meters_per_unit=1.0)
    of_copy = tmp_path / "copy.csv"
    of_copy.write_text(text_of([["copy.las", str(59 - 3), *(f"{value:.3f}" for value in POINTS[3]), "ground"]]))
    tiles = {tile: CLOUD, tmp_path / "copy.las": copy}
    answers, kept = kept_of([first, again, tmp_path / "asked.las", of_copy, first], tiles)
    assert len(answers) == 11 and sorted(answers.rows[kept].tolist()) == [3, 4, 17, 40]


@pytest.mark.parametrize("other", ["answers (1).csv", "asked.las", "itself", "copy.csv"])
def test_answers_that_contradict_each_other_are_an_error_that_names_both(tmp_path, other):
    tile = tmp_path / "new.las"
    write_tile(tile, POINTS, np.ones(len(POINTS)), step=0.001)
    paths = [written(tmp_path, {3: "ground", 4: "building"})]
    tiles = {tile: CLOUD}
    if other == "itself":
        paths[0].write_text(text_of([*rows_of({3: "ground", 4: "building"}), *rows_of({3: "building"})]))
        where = "answers.csv: line 4"
    elif other == "asked.las":
        write_some_points(tile, tmp_path / other, np.array([3, 40]), {ROW: np.array([3, 40])})
        import laspy

        asked = laspy.read(tmp_path / other)
        asked.classification = [6, 1]
        asked.write(tmp_path / other)
        where = "asked.las: point 0"
    elif other == "copy.csv":
        tiles[tmp_path / "copy.las"] = PointCloudData(POINTS[::-1].copy(), meters_per_unit=1.0)
        row = ["copy.las", str(59 - 3), *(f"{value:.3f}" for value in POINTS[3]), "building"]
        (tmp_path / other).write_text(text_of([row]))
        where = "copy.csv: line 2"
    else:
        written(tmp_path, {3: "building"}, other)
        where = "answers (1).csv: line 2"
    if other != "itself":
        paths.append(tmp_path / other)
    with raises(ValueError, naming=f"{where}: says building of a point that is ground in") as error:
        kept_of(paths, tiles)
    assert "answers.csv: line 2; keep one answer for this point" in str(error.value)


def cloud_at(points, **fields):
    return PointCloudData(points, labels=np.zeros(len(points), int), meters_per_unit=1.0, up_axis="z", **fields)


COPIES = {
    "the same": lambda points: points,
    "in another order": lambda points: points[::-1].copy(),
    "moved": lambda points: points + (4000, 0, 0),
    "half of the ground": lambda points: points + (25, 0, 0) + 0.001,
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_tile_and_tiles_that_share_ground_never_judge_each_other(tmp_path, name):
    other = (np.random.default_rng(5).uniform(0, 50, (60, 3)) + (500_090, 5_000_000, 100)).round(3)
    clouds = [POINTS, other, COPIES[name](POINTS).round(3)]
    facts = [look_at(tmp_path / f"{number}.las", cloud_at(points)) for number, points in enumerate(clouds)]
    groups = twins_of(facts, are_places=True)
    assert groups[0] == groups[2] != groups[1]
    assert any("duplicates: 0.las and 2.las" in remark for remark in remarks_on_copies(facts)) == (
        name != "half of the ground"
    )
    places = places_of(facts)
    assert places[0] == places[2]
    # Objects all lie around the origin, so that the same box says nothing.
    alike = [look_at(tmp_path / f"{number}.ply", cloud_at(points)) for number, points in enumerate([POINTS, other])]
    assert len({*twins_of(alike, are_places=False).tolist()}) == 2
