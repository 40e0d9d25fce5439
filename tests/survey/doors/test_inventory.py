"""A person with a raw scan: one line, and the same file with ground, heights, classes and numbers."""

import csv
import json

import laspy
import numpy as np
import pytest

from docs.tools.snippets import blocks, pages
from hf_any3d.data.generated import tiles
from tests.doors.shown import same


@pytest.fixture(scope="module")
def page():
    """The first block of the guide."""
    return blocks(pages()["docs/inventory.md"])[0]


@pytest.fixture(scope="module")
def counted(shell, page):
    """What that block printed, with numbered.las and objects.csv."""
    return shell(page.text)


def test_the_page_prints_what_it_shows(counted, page):
    assert same(page.printed, counted.text), counted.text


def test_the_table_has_what_the_copy_has(counted, shell):
    las = laspy.read(shell.folder / "numbered.las")
    numbers = np.array(las.PredInstance)
    with open(shell.folder / "objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(1, numbers.max() + 1))
    heights = np.array(las.HeightAboveGround)
    for row in rows:
        own = numbers == int(row["number"])
        assert own.sum() == int(row["points"])
        if row["class"] == "tree":
            assert float(row["height_m"]) == pytest.approx(heights[own].max(), abs=0.01)
    old = laspy.read(shell.folder / "new.las")
    assert (np.array(old.X) == np.array(las.X)).all() and set(np.array(las.classification)) <= {2, 3, 4, 5, 6, 7}


def test_other_columns_and_classes_as_they_were(counted, shell):
    shell("hf-any3d inventory numbered.las --output again.las --number-field treeID --keep-classes", code=1)
    assert not (shell.folder / "again.las").exists()
    (shell.folder / "raw.las").write_bytes(tiles.las_bytes(tiles.draw_tile(9), labeled=True))
    shell("hf-any3d inventory raw.las --output trees.las --number-field treeID --keep-classes")
    old, new = laspy.read(shell.folder / "raw.las"), laspy.read(shell.folder / "trees.las")
    assert (np.array(old.classification) == np.array(new.classification)).all()
    assert np.array(new.treeID).max() > 0


def test_json_and_a_page_have_the_things(counted, shell):
    (row,) = json.loads(shell("hf-any3d inventory new.las --json").out)
    assert {"number", "class", "x", "y", "height_m"} <= row["things"][0].keys()
    shell("hf-any3d inventory new.las --output page.html")
    assert "trees up to" in (shell.folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("hf-any3d inventory new.las --output new.ply", "expected the ending"),
        ("hf-any3d inventory new.las --keep-classes --reclassify", "exclude each other"),
        ("hf-any3d inventory chair.ply", "chair.ply: a mesh; inventory needs an airborne point cloud"),
        ("hf-any3d inventory new.las --table objects.xls", "objects.xls|.csv"),
        ("hf-any3d inventory nothing.las", "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(counted, shell, command, word):
    if "chair" in command:
        shell("hf-any3d data example chair.ply")
    done = shell(command, code=1)
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert any(part in line for part in word.split("|"))
