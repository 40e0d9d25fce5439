"""Points that commands leave out of a tile are told by each of them, in one sentence and with their share."""

import json

import laspy
import numpy as np
import pytest

from hf_any3d.data.checks.left_out_points import left_out_words
from hf_any3d.data.classes.class_rule import ClassRule
from hf_any3d.data.generated import tiles
from hf_any3d_command import main
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.reading import tile_files
from hf_any3d_survey.tiles.tile_set import TileSet

WITHHELD, NOISE = 150, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two labeled tiles with withheld points and points of both classes of noise, and a model of tiles."""
    folder = tmp_path_factory.mktemp("left_out")
    (folder / "tiles").mkdir()
    for number in range(2):
        path = folder / "tiles" / f"{number}.las"
        path.write_bytes(tiles.las_bytes(tiles.draw_tile(number), labeled=True))
        las = laspy.read(path)
        las.withheld = np.arange(len(las)) < WITHHELD
        las.classification[WITHHELD : WITHHELD + NOISE] = 7
        las.write(path)
    return folder


def said_by(words, monkeypatch, capsys, code=0):
    monkeypatch.setattr("sys.argv", ["hf-any3d", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code or 0) == code, said.err
    return said


OF_INVENTORY = f"{WITHHELD} withheld, {NOISE} noise (class 7)"
COMMANDS = {
    "inventory {tile} --output {out}.las": OF_INVENTORY,
    "inventory {tile} --output {out}.html": OF_INVENTORY,
    "inventory {tile} --json": OF_INVENTORY,
    "segment {tile} --model {model} --output {out}.las": f"{WITHHELD} withheld",
    "segment {tile} --model {model} --output {out}.html": f"{WITHHELD} withheld",
    "evaluate {model} {tile}": f"{WITHHELD} withheld",
    "evaluate {tile} {tile}": f"{WITHHELD} withheld",
    "data check {tile}": OF_INVENTORY,
    "data suggest {tile} --output {out}.csv --points 5": f"{WITHHELD} withheld",
}


@pytest.fixture(scope="module")
def places(folder):
    from hf_any3d_survey.about import SCENE_MODEL

    return {"tile": folder / "tiles" / "0.las", "tiles": folder / "tiles", "model": SCENE_MODEL}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_leaves_out(command, places, tmp_path, monkeypatch, capsys):
    words = [word.format(out=tmp_path / "out", **places) for word in command.split()]
    said = said_by(words, monkeypatch, capsys)
    (line,) = [line for line in (said.err + said.out).splitlines() if "are left out" in line]
    assert f"% of the points are left out: {COMMANDS[command]}" in line


def test_a_training_tells_it_of_all_tiles(places):
    remarks = TileSet.read(tile_files([places["tiles"]]), ClassRule(), TilesArguments()).remarks
    (remark,) = [remark for remark in remarks if "are left out" in remark]
    assert remark.endswith(f"% of the points are left out: {2 * WITHHELD} withheld")


def test_a_report_tells_it_and_copies_keep_the_classes(places, tmp_path, monkeypatch, capsys):
    said_by(["inventory", places["tile"], "--report", tmp_path / "report.json"], monkeypatch, capsys)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["left_out_points"].endswith(f"% of the points are left out: {OF_INVENTORY}")
    copy = tmp_path / "copy.las"
    said_by(["segment", places["tile"], "--model", places["model"], "--output", copy], monkeypatch, capsys)
    old, new = laspy.read(places["tile"]), laspy.read(copy)
    assert np.array_equal(old.classification[:WITHHELD], new.classification[:WITHHELD])
    assert not np.array_equal(old.classification, new.classification)


@pytest.mark.parametrize(
    ("count", "share"), [(1, "less than 0.01 %"), (150, "0.15 %"), (2300, "2.3 %"), (99_999, "99 %")]
)
def test_a_share_has_two_digits_and_never_rounds_to_all(count, share):
    assert left_out_words({"withheld": count}, 100_000) == f"{share} of the points are left out: {count:,} withheld"
