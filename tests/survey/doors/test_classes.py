"""Labeled tiles of several point formats: what is learned, judged, and said of the rest."""

import json

import laspy
import numpy as np


def write_tile(path, codes, point_format=6, **dimensions):
    """Write a tile with a point for each code; every second one is on a roof."""
    generator = np.random.default_rng(0)
    tile = laspy.create(point_format=point_format, file_version="1.4")
    tile.header.scales = [0.001] * 3
    tile.x, tile.y = generator.uniform(0, 30, (2, len(codes)))
    tile.z = 5.0 * (np.arange(len(codes)) % 2) + generator.normal(0, 0.02, len(codes))
    tile.classification = np.asarray(codes)
    for name, values in dimensions.items():
        setattr(tile, name, values)
    path.parent.mkdir(exist_ok=True)
    tile.write(path)


def halves(*codes, count=300):
    return np.resize(codes, count)


def test_codes_without_an_object_are_not_learned_in_any_file_and_named(shell):
    folder = shell.folder / "mixed"
    write_tile(folder / "old.las", halves(2, 12, 8, 11), point_format=1)
    write_tile(folder / "new.las", halves(2, 1, 140, 20))
    # All that is no ground is deleted.
    write_tile(folder / "withheld.las", halves(2, 6), withheld=np.arange(300) % 2 == 1)
    # A file without codes of LAS among tiles
    points = np.random.default_rng(0).uniform(0, 30, (300, 3))
    shell.write("mixed/cloud.ply", points, labels=halves(2, 1))
    said = shell("hf-any3d train mixed --task segmentation", code=1).err
    assert "one class (ground)" in said
    write_tile(folder / "more.las", halves(2, 74, 74, 12))
    said = shell("hf-any3d train mixed --task segmentation --merge a=2 b=74:2", code=1).err
    assert "code 2 for a and for b" in said


def test_what_is_not_learned_is_named_with_its_share_and_the_option_that_learns_it(shell):
    for number in range(2):
        codes = halves(2, 6, 2, 6, 12, 20)
        write_tile(shell.folder / f"shares/{number}.las", codes, withheld=np.arange(300) < 30)
    # Few points are refused by their invalid neighbors, not the training.
    write_tile(shell.folder / "shares/small.las", halves(2, 6, count=10))
    write_tile(shell.folder / "shares/two.las", halves(2, 6, count=2))
    (shell.folder / "shares/damaged.las").write_bytes(b"")
    options = "--points 200 --folds 2 --edges 1 --output outputs/shares"
    done = shell(f"hf-any3d train shares --task segmentation --merge other=2,6:64 rest=20 {options}")
    assert "labeled points: other 370, rest 90" in done.out and "1 site" in done.out
    assert "9.8 % of the points are left out: 60 withheld" in done.err
    assert "class 12 overlap (reserved), 16 % of the labels; --ignore none learns 12" in done.err
    assert "skipped" in done.err and "two.las: 2 points" in done.err and "damaged.las" in done.err
    assert "overlap: 0.las and 1.las" in done.err
    config = json.loads((shell.folder / "outputs/shares/config.json").read_text())
    assert config["class_codes"] == [64, 20]


def test_two_files_are_compared_by_the_points_that_are_learned(shell):
    write_tile(shell.folder / "truth.las", halves(2, 6, 12, 7), 1, withheld=np.arange(300) < 100)
    write_tile(shell.folder / "predicted.las", halves(2, 6), 1)
    figures = json.loads(shell("hf-any3d evaluate predicted.las truth.las --json").out)
    assert figures["counted"] == 100 and figures["accuracy"] == 1
    assert figures["without_truth"] == {"low noise": 50, "overlap": 50}
    named = json.loads(shell("hf-any3d evaluate predicted.las truth.las --ignore 7 --json").out)
    assert named["counted"] == 150
    # A code that neither file has is most likely a mistake, one of the standard need not be in each.
    said = shell("hf-any3d evaluate predicted.las truth.las --merge a=2,99", code=1).err
    assert "--merge a=2,99: no point that counts has class 99; use a=2" in said
    shell("hf-any3d evaluate predicted.las truth.las --merge a=2,3")
