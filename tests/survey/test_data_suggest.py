"""Points of a tile to label next: suggested by a command, labeled, and learned by a model of tiles."""

import csv

import laspy
import numpy as np
import pytest

from hf_any3d.utils.atomic_files import read_json
from hf_any3d_survey.tiles import training
from tests.cli.conftest import run
from tests.forks import results_of
from tests.survey.test_tiles import drawn, write_tile

pytestmark = [pytest.mark.usefixtures("libraries_as_they_were"), pytest.mark.slow]

NAMES = {2: "ground", 5: "high vegetation", 6: "building"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of two tiles, and a third tile."""
    folder = tmp_path_factory.mktemp("suggest")
    for number in range(2):
        write_tile(folder / f"tiles/{number}.las", *drawn(number, number))
    write_tile(folder / "new.las", *drawn(7, 9))
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning):
        patch.setattr(training, "_FOLD_STEPS", 40)
        patch.setattr(training, "STEPS", 80)
        done = run("train", folder / "tiles", "--folds", 2, "--points", 3000, "--output", folder / "model")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def table(folder):
    """The suggested points as rows of a table, which a process of its own has written."""
    words = ["data", "suggest", folder / "new.las", "--model", folder / "model", "--points", "60"]
    (done,) = results_of(lambda: tuple(run(*words, "--output", folder / "table.csv")))
    assert done[0] == 0 and "60 points of new.las to label" in done[1], done
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def truth(folder):
    return np.asarray(laspy.read(str(folder / "new.las")).classification)


def save_answers(path, table, classes):
    """Write the table with the class of each row that has one."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        for row in table:
            writer.writerow({**row, "class": classes.get(int(row["row"]), "")})


def test_a_table_has_the_places_of_the_tile_and_no_class_yet(folder, table):
    tile = laspy.read(str(folder / "new.las"))
    rows = [int(row["row"]) for row in table]
    assert (
        len({*rows}) == 60
        and {row["class"] for row in table} == {""}
        and {row["tile"] for row in table} == {"new.las"}
    )
    assert {row["guess"] for row in table} <= {*NAMES.values()}
    found = np.array([[float(row[axis]) for axis in "xyz"] for row in table])
    assert np.allclose(found, tile.xyz[rows], atol=1e-3)


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_a_cloud_of_the_points_alone_has_their_rows_and_guesses(folder, table, ending):
    path = folder / f"points.{ending}"
    done = run("data", "suggest", folder / "new.las", "--model", folder / "model", "--points", 60, "--output", path)
    assert done.code == 0, done.err
    tile, cloud = laspy.read(str(folder / "new.las")), laspy.read(str(path))
    rows = np.asarray(cloud.TileRow)
    assert rows.tolist() == sorted(int(row["row"]) for row in table) and cloud.header.point_count == 60
    assert np.array_equal(cloud.xyz, tile.xyz[rows]) and not np.asarray(cloud.classification).any()
    assert np.array_equal(np.asarray(cloud.number_of_returns), np.asarray(tile.number_of_returns)[rows])
    guesses = {int(row["row"]): row["guess"] for row in table}
    assert [NAMES[code] for code in np.asarray(cloud.Guess)] == [guesses[row] for row in rows]
    assert np.allclose(cloud.header.mins, cloud.xyz.min(axis=0)) and np.allclose(
        cloud.header.maxs, cloud.xyz.max(axis=0)
    )
    assert cloud.header.number_of_points_by_return.sum() == 60 and len(cloud.header.vlrs) > 1


def test_a_page_asks_for_the_points_of_the_table(folder, table):
    path = folder / "page.html"
    done = run("data", "suggest", folder / "new.las", "--model", folder / "model", "--points", 60, "--output", path)
    assert done.code == 0, done.err
    text = path.read_text()
    assert all(f'"row": {row["row"]},' in text for row in table) and '"tile": "new.las"' in text


def test_other_models_and_formats_are_refused_before_anything_is_opened(folder, models, table):
    refused = run("data", "suggest", folder / "new.las", "--model", models("parts"))
    assert refused.code == 1 and "learned from tiles" in refused.err
    refused = run("data", "suggest", "new.ply", "--model", folder / "model", "--output", "points.laz")
    assert refused.code == 1 and "new.ply is no LAS or LAZ" in refused.err
    refused = run("train", folder / "new.las", "--from", models("parts"))
    assert refused.code == 1 and "cannot be extended" in refused.err
    refused = run("train", folder / "new.las", "--from", folder / "model", "--output", folder / "none")
    assert refused.code == 1 and "no answers" in refused.err
    save_answers(folder / "some.csv", table, {int(table[0]["row"]): "ground"})
    words = ("train", folder / "some.csv", folder / "new.las", "--from", folder / "model")
    refused = run(*words, "--output", folder / "model")
    assert refused.code == 1 and "give another directory" in refused.err
    refused = run(*words, "--epochs", 3)
    assert refused.code == 1 and "--epochs has no effect when extending a model" in refused.err


def labels_of(folder, model, name):
    copy = folder / f"{model}_{name}.las"
    # The class of an older point format has no room for code 64.
    done = run("segment", folder / f"{name}.las", "--model", folder / model, "--field", "Answer", "--output", copy)
    assert done.code == 0, done.err
    return np.asarray(laspy.read(str(copy)).Answer)


def test_answers_teach_a_new_class_and_keep_what_was_learned(folder, table):
    codes = truth(folder)
    words = {**NAMES, 5: "hedge"}
    classes = {int(row["row"]): words[codes[int(row["row"])]] for row in table if codes[int(row["row"])] in words}
    save_answers(folder / "answers.csv", table, classes)
    model = folder / "added"
    done = run("train", folder / "answers.csv", folder / "new.las", "--from", folder / "model", "--output", model)
    assert done.code == 0, done.err
    assert f"{len(classes)} points added" in done.out and "new class: hedge" in done.out
    config, report = (read_json(model / name) for name in ("config.json", "metrics.json"))
    assert config["class_codes"] == [2, 5, 6, 64]
    added = report["training"]["added"][0]
    assert added["points"] == len(classes) and added["new classes"] == ["hedge"] and added["tiles"] == ["new.las"]
    card = (model / "README.md").read_text()
    assert "hedge" in card and "Before adding points" in card
    rows = np.array(sorted(classes))
    expected = np.where(codes[rows] == 5, 64, codes[rows])
    before, after = labels_of(folder, "model", "new"), labels_of(folder, "added", "new")
    assert (after[rows] == expected).mean() > (before[rows] == expected).mean() + 0.1
    # What is no hedge here is what it was.
    others = np.isin(codes, (2, 6))
    assert (after == codes)[others].mean() > (before == codes)[others].mean() - 0.05
    # A second round, by the answers of another program, adds to it.
    cloud = folder / "clicked.laz"
    done = run("data", "suggest", folder / "new.las", "--model", model, "--points", 30, "--output", cloud)
    assert done.code == 0, done.err
    points = laspy.read(str(cloud))
    points.classification = np.where(codes[np.asarray(points.TileRow)] == 5, 1, codes[np.asarray(points.TileRow)])
    points.write(str(cloud))
    done = run("train", cloud, folder / "new.las", "--from", model, "--output", folder / "twice")
    assert done.code == 0, done.err
    assert len(read_json(folder / "twice/metrics.json")["training"]["added"]) == 2
    assert read_json(folder / "twice/config.json")["learned_rows"] > config["learned_rows"]


def test_the_packaged_model_takes_answers_and_makes_an_inventory(folder):
    done = run("data", "suggest", folder / "new.las", "--points", 40, "--output", folder / "ask.csv")
    asked = list(csv.DictReader((folder / "ask.csv").read_text().splitlines()))
    said = {int(row["row"]): NAMES.get(truth(folder)[int(row["row"])], "ground") for row in asked}
    save_answers(folder / "said.csv", asked, said)
    earlier, mine = done.out.split("--from ")[1].strip(), folder / "mine"
    assert earlier == "inventory" and f"train {folder / 'ask.csv'} {folder / 'new.las'} " in done.out
    refused = run("segment", folder / "new.las", "--model", earlier, "--adapt", "--output", folder / "adapted.las")
    assert refused.code == 1 and "only 300 training points" in refused.err
    done = run("train", folder / "said.csv", folder / "new.las", "--from", earlier, "--output", mine)
    assert done.code == 0 and f"{len(said)} points added" in done.out, done.err
    assert f"try: hf-any3d inventory FILE --model {mine}" in done.out
    done = run("inventory", folder / "new.las", "--model", mine, "--output", folder / "numbered.las")
    assert done.code == 0 and "trees" in done.out, done.err


def test_answers_about_a_changed_tile_are_refused(folder, table):
    save_answers(folder / "answers.csv", table, {int(table[0]["row"]): "ground"})
    points, labels, returns = drawn(7, 9)
    write_tile(folder / "changed/new.las", points[1:], labels[1:], returns[1:])
    words = ("--from", folder / "model", "--output", folder / "none")
    refused = run("train", folder / "answers.csv", folder / "changed/new.las", *words)
    assert refused.code == 1 and f"row {table[0]['row']} of new.las is not at" in refused.err
    assert not (folder / "none/config.json").exists()
