"""data prepare, data describe, data check and show."""

import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from datasets import Dataset

from hf_any3d import load_point_dataset, read_point_cloud
from hf_any3d.data.checks.clouds import doubts_about
from hf_any3d.data.dataset_names import FoundDataset, find_dataset
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.cli.conftest import FILES, run
from tests.data.files.builders import e57, gltf, gltf_square, las, ply, sweep
from tests.visualization.test_viewer import content, decoded

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

BAD = "error: 1 of 7 files could not be used: {}/ball/bad.ply"


@pytest.fixture
def classes(tmp_path):
    """A folder of two classes with three clouds each, and a damaged one."""
    for label, scale in (("ball", 1), ("stick", (1, 9, 1))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            points = np.random.default_rng(number).normal(size=(80, 3)) * scale
            np.save(tmp_path / "data" / label / f"{number}.npy", points.astype(np.float32))
    (tmp_path / "data" / "ball" / "bad.ply").write_text("ply\nnothing")
    return tmp_path / "data"


@pytest.mark.slow
def test_prepared_data_open_as_a_dataset_with_card_and_statistics(classes, tmp_path):
    output = tmp_path / "prepared"
    code, out, err = run("data", "prepare", classes, "--output", output, "--points", 64)
    assert code == 2 and err.splitlines()[-1] == BAD.format(classes)
    assert out.splitlines() == ["train: 6 clouds", f"{output}: train with hf-any3d train {output}"]
    rows = load_point_dataset("parquet", data_dir=output, split="train")
    assert rows.features["label"].names == ["ball", "stick"] and rows[0]["points"].shape == (64, 3)
    card = (output / "README.md").read_text()
    assert card.startswith("---\n") and "pretty_name: prepared" in card and "ball" in card
    assert json.loads((output / "meta" / "stats.json").read_text())["splits"]["train"]["num_rows"] == 6
    assert "not empty; give a new folder" in run("data", "prepare", classes, "--output", output).err


@pytest.mark.slow
def test_description_counts_clouds_points_and_classes(classes):
    code, out, err = run("data", "describe", classes)
    assert code == 2 and err.splitlines()[-1] == BAD.format(classes)
    assert out.splitlines()[0] == "train: 6 clouds; columns points, label, file"
    assert "80 points each" in out and "ball   train     3" in out
    facts = json.loads(run("data", "describe", classes, "--json").out)
    assert facts["train"]["labels"] == {"ball": 3, "stick": 3}
    # Read from the cache by now, where no error is raised.
    code, out, err = run("data", "describe", classes, "--csv")
    assert code == 2 and err == BAD.format(classes) + "\n" and out == "split,clouds,ball,stick\ntrain,6,3,3\n"


def test_clouds_without_classes_are_described_too(tmp_path):
    rows = Dataset.from_dict({"points": [[[0.0, 0, 0], [1, 2, 3]]] * 3})
    rows.to_parquet(tmp_path / "train.parquet")
    code, out, _ = run("data", "describe", tmp_path)
    assert code == 0 and out.splitlines()[0] == "train: 3 clouds; columns points" and len(out.splitlines()) == 2


def test_check_lists_bad_doubtful_and_equal_files(scans):
    np.save(scans / "same.npy", read_point_cloud(scans / "chair.ply").points)
    np.save(scans / "few.npy", np.eye(3))
    np.save(scans / "flat.npy", np.ones((70, 3)))
    code, out, err = run("data", "check", scans)
    assert code == 2 and out.startswith("7 files: 2 good, 4 doubtful, 1 bad; ")
    for text in (
        "same.npy: the same points as",
        "few.npy: 3 points are very few",
        "flat.npy: all points have the same coordinates",
    ):
        assert text in err
    assert "2 of 100 points have NaN" in err and "bad.ply: has 128 bytes" in err
    code, out, _ = run("data", "check", FILES / "chair.ply", "--json")
    assert code == 0 and json.loads(out)[0]["has"] == ["colors", "faces"] or json.loads(out)[0]["has"]


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "pcd"])
def test_what_a_cloud_has_no_place_for_leaves_no_doubt_and_is_told_once(kind, tmp_path):
    texture = {"materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]}
    document, chunk = gltf_square(**texture)
    document["meshes"][0]["primitives"][0]["material"] = 0
    (tmp_path / "m.mtl").write_text("newmtl skin\nmap_Kd skin.png\nnewmtl bone\nKd 1 0 0\n")
    for number in (2, 3):
        # Of different sizes, as equal ones would be doubtful.
        document["nodes"] = [{"mesh": 0, "scale": [number, 1, 1]}]
        rows = [f"{row} {row * row % 7} {row % number} {row}" for row in range(70)]
        body = ("\n".join(rows) + "\n").encode()
        properties = "\n".join(f"property float {name}" for name in ("x", "y", "z", "mine"))
        header = "FIELDS x y z mine\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 70\nHEIGHT 1\nPOINTS 70\nDATA ascii\n"
        triangles = "usemtl skin\nf 1 2 3\nusemtl bone\nf 2 3 4\n"
        content = {
            "glb": gltf(document, chunk),
            "obj": f"mtllib m.mtl\nv 0 0 0\nv {number} 0 0\nv 0 1 0\nv 0 0 1\n{triangles}".encode(),
            "ply": ply(f"element vertex 70\n{properties}", body, "ascii"),
            "pcd": header.encode() + body,
        }
        (tmp_path / f"{number}.{kind}").write_bytes(content[kind])
    code, out, err = run("data", "check", tmp_path)
    assert code == 0 and "2 files: 2 good, 0 doubtful, 0 bad" in out and "ignored" not in out
    assert err.count("ignored") == 1 and "2 files, such as " in err


@pytest.mark.slow
def test_check_says_which_classes_need_more_scans(classes):
    np.save(classes / "ball" / "more.npy", np.eye(9, 3))
    for number in range(5, 9):
        np.save(classes / "stick" / f"{number}.npy", np.random.default_rng(number).normal(size=(80, 3)))
    out = run("data", "check", classes).out
    assert out.splitlines()[-1] == "2 classes, 4 to 7 scans each; ball (4) would benefit most from more scans"
    assert len(run("data", "check", classes / "ball").out.splitlines()) == 1


def test_a_scan_in_e57_stands_upright_and_shows_its_intensities(tmp_path):
    axes = [(f"cartesian{axis}", 0, 99, np.arange(40) * (3 + at) % 100) for at, axis in enumerate("XYZ")]
    (tmp_path / "room.e57").write_bytes(e57([*axes, ("intensity", 0, 1000, np.arange(40) * 25)]))
    for name, file in (("room", tmp_path / "room.e57"), ("sweep", tmp_path / "0.bin")):
        (tmp_path / "0.bin").write_bytes(sweep(4, 300))
        assert run("show", file, "--output", tmp_path / f"{name}.html").code == 0
        shown = content((tmp_path / f"{name}.html").read_text())[0]
        assert shown["panels"][0]["up"] == "z"
        assert [coloring["name"] for coloring in shown["colorings"]] == ["intensity", "height"]
        assert run("show", file, "--output", tmp_path / f"{name}.png").code == 0
    assert (shown["colorings"][0]["low"], shown["colorings"][0]["high"]) == pytest.approx((0.01, 0.99), abs=0.02)


def test_the_room_to_try_stands_upright(tmp_path):
    assert run("data", "example", "room.ply", "room.ply", "--output", tmp_path).code == 0
    room = read_point_cloud(tmp_path / "room.ply")
    assert (room.up_axis, room.meters_per_unit) == ("z", 1.0)
    assert run("show", tmp_path / "room.ply", "--output", tmp_path / "room.html").code == 0
    assert content((tmp_path / "room.html").read_text())[0]["panels"][0]["up"] == "z"


def test_examples_that_are_there_are_kept_and_the_others_written(tmp_path):
    names = ("chair.ply", "stairs.ply", "tiles")
    first = run("data", "example", *names, "--output", tmp_path)
    again = run("data", "example", *names, "new.las", "--output", tmp_path)
    assert (again.code, again.out.startswith(first.out)) == (0, True) and (tmp_path / "new.las").exists()
    assert again.err.splitlines() == [f"{tmp_path / name}: kept, it is there already" for name in names]
    # What a user has under the name of an example, more or other than that.
    others = {"chair.ply": b"mine", "tiles/4.las": b"mine"}
    for name, own in others.items():
        (tmp_path / name).write_bytes(own)
    (tmp_path / "stairs.ply").unlink()
    (tmp_path / "stairs.ply").mkdir()
    mixed = run("data", "example", *names, "lamp.ply", "--output", tmp_path)
    assert (mixed.code, mixed.out) == (0, f"{tmp_path / 'lamp.ply'}\n")
    assert [line.split(": ")[1:3] for line in mixed.err.splitlines()] == [
        [str(tmp_path / name), "kept, it differs from the example; --output FOLDER writes that elsewhere"]
        for name in names
    ]
    assert all((tmp_path / name).read_bytes() == own for name, own in others.items())


@pytest.mark.slow
def test_files_are_shown_on_a_page_and_bad_ones_are_reported(scans, tmp_path):
    code, out, err = run("show", scans, "--output", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert code == 2 and out == f"{tmp_path / 'a.html'}\n" and "1 of 4 files" in err
    assert "chair.ply" in page and "lamp.STL" in page and "https://" not in page


@pytest.mark.slow
def test_a_dataset_is_shown_with_its_labels(classes, tmp_path):
    run("data", "prepare", classes, "--output", tmp_path / "prepared")
    code, _, _ = run("show", tmp_path / "prepared", "--output", tmp_path / "a.html", "--most", 4)
    page = (tmp_path / "a.html").read_text()
    assert code == 0 and "4 of 6 clouds" in page and "ball" in page and "stick" in page
    assert "--split is 'test'; " in run("show", tmp_path / "prepared", "--split", "test").err


def test_files_are_shown_with_as_many_labels_as_any_of_them_has(tmp_path):
    for name, most in (("a", 3), ("b", 5), ("c", 2)):
        labels = np.arange(30) % most
        write_point_cloud(tmp_path / f"{name}.ply", PointCloudData(np.random.rand(30, 3), labels=labels))
    assert run("show", tmp_path, "--output", tmp_path / "page.html").code == 0
    assert json.dumps(list("01234")) in (tmp_path / "page.html").read_text()


def test_points_of_several_files_or_a_dataset_are_no_cloud(tmp_path):
    for words in ((FILES / "chair.ply", FILES / "lamp.stl"), ("shapes",)):
        code, _, err = run("show", *words, "--output", tmp_path / "all.ply")
        assert code == 1 and "expected" in err and ".html, .png" in err and "folder" not in err


@pytest.mark.slow
def test_a_file_is_shown_as_points_or_picture(tmp_path):
    assert run("show", FILES / "chair_points.ply", "--output", tmp_path / "a.npz").code == 0
    cloud = read_point_cloud(FILES / "chair_points.ply")
    assert np.array_equal(read_point_cloud(tmp_path / "a.npz").points, cloud.points)
    assert run("show", FILES / "chair.ply", "--output", tmp_path / "a.png").code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("show", FILES / "chair.ply", "--up-axis", "w")
    assert code == 2 and "'w' is not one of x, y, z" in err


@pytest.fixture
def mixed(tmp_path):
    """A folder with two classes, a cloud of one point, an empty class and a text without points."""
    for label, spread in (("ball", 1), ("box", 2)):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(3):
            points = np.random.default_rng(number).normal(size=(100, 3)) * spread
            np.save(tmp_path / "scans" / label / f"{number}.npy", points.astype("float32"))
    np.save(tmp_path / "scans" / "box" / "one.npy", np.ones((1, 3), "float32"))
    (tmp_path / "scans" / "vase").mkdir()
    (tmp_path / "scans" / "box" / "notes.txt").write_text("Scanned on a cloudy day.\nWith the old scanner.\n")
    return tmp_path / "scans"


def test_clouds_without_a_shape_and_empty_classes_are_left_out_and_named_alike(mixed, tmp_path):
    checked = run("data", "check", mixed)
    assert checked.code == 2 and "7 files: 6 good, 0 doubtful, 1 bad" in checked.out
    described = run("data", "describe", mixed)
    prepared = run("data", "prepare", mixed, "--output", tmp_path / "out")
    assert described.code == prepared.code == 2 and "train: 6 clouds" in described.out and "6 clouds" in prepared.out
    for result in (checked, described, prepared):
        assert "one.npy" in result.err and re.search("vase: no point cloud|without point clouds: vase", result.err)
        assert "notes.txt: text without points" in result.err and "1 of 7 files could not be used" in result.err
    for result in (checked, described):  # the third has the rows of the second, which were kept
        assert "1 point; expected at least 3" in result.err


def test_lost_precision_and_millimeters_are_doubtful(tmp_path):
    random = np.random.default_rng(0)
    street = random.uniform(size=(2000, 3)) * [100, 100, 10] + [500_000, 5_000_000, 0]
    np.save(tmp_path / "street.npy", street.astype("float32"))
    np.save(tmp_path / "room.npy", (random.uniform(size=(2000, 3)) * [4000, 5000, 2600]).astype("float32"))
    np.save(tmp_path / "grid.npy", np.stack(np.meshgrid(*[np.arange(12.0)] * 3), -1).reshape(-1, 3))
    np.save(tmp_path / "good.npy", random.normal(size=(2000, 3)).astype("float32"))
    result = run("data", "check", tmp_path, "--json")
    rows = {row["file"].rpartition("/")[2]: row for row in json.loads(result.out)}
    assert "y has " in str(rows["street.npy"]["warnings"]) and "steps of 0.5" in str(rows["street.npy"]["warnings"])
    assert "millimeters" in str(rows["room.npy"]["warnings"])
    assert "warnings" not in rows["grid.npy"] and "warnings" not in rows["good.npy"]
    assert rows["room.npy"]["extent"] == pytest.approx([4000, 5000, 2600], rel=0.01)


def test_files_in_another_unit_and_near_duplicates_are_named(tmp_path):
    for number in range(20):
        generator = np.random.default_rng(number)
        # Six rods in any directions, from 100 to 1000 long.
        ends = generator.uniform(-1, 1, (2, 6, 3)) * generator.uniform(50, 500)
        share, rod = generator.random((1500, 1)), generator.integers(6, size=1500)
        points = ends[0, rod] * share + ends[1, rod] * (1 - share)
        scale = 0.001 if number in (3, 9, 14) else 1
        np.save(tmp_path / f"{number:02}.npy", (points * scale).astype("float32"))
    np.save(tmp_path / "20.npy", (points[::-1] + 1e-4).astype("float32"))
    result = run("data", "check", tmp_path)
    assert result.out.splitlines() == [
        "21 files: 18 good, 3 doubtful, 0 bad; 31,500 points",
        f"1 near-duplicates, such as {tmp_path}/19.npy and {tmp_path}/20.npy",
    ]
    named = [line.partition(":")[2].strip() for line in result.err.splitlines() if "another unit" in line]
    assert [line.partition(":")[0].rpartition("/")[2] for line in named] == ["03.npy", "09.npy", "14.npy"]
    assert "times smaller than the usual" in named[0] and "e" not in named[0].partition(" about ")[2].split()[0]


def test_extents_of_maps_are_no_millimeters(tmp_path):
    random = np.random.default_rng(0).uniform(size=(500, 3)) * [6000, 5000, 300]
    np.save(tmp_path / "tile.npy", np.round(random + [4e5, 5e6, 0], 3))
    write_point_cloud(tmp_path / "tile.ply", read_point_cloud(tmp_path / "tile.npy"))
    (tmp_path / "tile.las").write_bytes(las(False, count=500)[1])
    assert "millimeters" not in run("data", "check", tmp_path).err


def grid(count, start=0.0, extent=1.0):
    """A cloud whose coordinates have `count` different values in four times as many points, far from 0."""
    values = np.repeat(np.linspace(0, extent, count), 4)
    points = np.stack([values + start, np.random.default_rng(0).random(4 * count), np.zeros(4 * count)], axis=1)
    return points.astype(np.float32)


@pytest.mark.parametrize(
    ("points", "doubtful"),
    [
        (grid(16, 2.0**19), True),
        (grid(15, 2.0**19), False),
        (grid(16, 2.0**19)[:-4].repeat(1, axis=0), False),
        (np.concatenate([grid(16, 2.0**19), grid(16, 2.0**19)[:0]]), True),
        (grid(16, 1000.0), False),
        (np.full((64, 3), 2.0**19, np.float32), False),
    ],
)
def test_steps_of_coordinates_are_doubtful_where_they_show(points, doubtful):
    found = doubts_about(PointCloudData(points))
    assert bool(found) is doubtful
    assert not found or found[0].startswith("x has 16 different values in 64 points, in steps of 0.0")


@pytest.mark.parametrize(("extent", "doubtful"), [(999, False), (1000, True), (50_000, True), (50_100, False)])
def test_extents_of_thousands_may_be_millimeters(extent, doubtful):
    found = doubts_about(PointCloudData(np.array([[0, 0, 0], [1, extent, 2]], np.float32)))
    text = f"the largest extent is {extent:g}, which suggests millimeters if this is an object or a room"
    assert found == ([text] if doubtful else [])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plain", ("folder", "plain", None)),
        ("table", ("parquet", "table", None)),
        ("described", ("folder", "described", None)),
        ("arrays", ("hdf5", "arrays", None)),
        ("arrays/a.H5", ("hdf5", "arrays/a.H5", None)),
        ("both", ("folder", "both", None)),
        ("table/a.PARQUET", ("parquet", None, "table/a.PARQUET")),
        ("shapes", ("shapes", None, None)),
        ("me/shapes", ("me/shapes", None, None)),
        ("plain/a.ply", "plain/a.ply: a single file; expected a folder of scans"),
        ("shapse", "shapse: no such folder, .parquet file or dataset; did you mean shapes\\?$"),
        (
            "nothing",
            "nothing: no such folder, .parquet file or dataset; datasets are .*shapes.*, and owner/name on the Hub$",
        ),
        ("./plian", "./plian: no such folder, .parquet file or dataset; did you mean plain"),
    ],
)
def test_data_are_a_folder_a_table_or_a_name(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = (
        "model/config.json",
        "model/model.safetensors",
        "arrays/a.H5",
        "arrays/shape_names.txt",
        "both/a.h5",
        "both/mug/a.txt",
    )
    for file in (*arrays, "plain/a.ply", "table/a.PARQUET", "table/in/b.parquet", "described/metadata.parquet"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    if isinstance(found, str):
        with pytest.raises((ValueError, FileNotFoundError), match=found):
            find_dataset(name)
        return
    assert find_dataset(name) == FoundDataset(found[0], *(part and Path(part) for part in found[1:]))


def test_hdf5_is_a_data_set_and_no_cloud(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    with h5py.File(folder / "train.h5", "w") as file:
        file["data"], file["label"] = np.random.default_rng(0).normal(size=(4, 64, 3)), [0, 1, 1, 0]
    (folder / "shape_names.txt").write_text("ball\nstick\n")
    for word in (folder, folder / "train.h5"):
        checked = run("data", "check", word)
        assert checked.code and 'load_point_dataset("hdf5", data_dir=…)' in checked.err
        described = run("data", "describe", word)
        assert "train: 4 clouds; columns points, label" in described.out and "stick  train     2" in described.out


def test_sizes_are_compared_in_meters_where_files_say_their_unit(tmp_path):
    for number, unit in enumerate([1.0, 1.0, 1.0, 0.3048, 0.001]):
        points = np.random.default_rng(number).uniform(size=(500, 3)) * 30 / unit
        cloud = PointCloudData(points.astype(np.float32), up_axis="z", meters_per_unit=unit)
        write_point_cloud(tmp_path / f"{number}.ply", cloud)
    result = run("data", "check", tmp_path)
    assert "5 good" in result.out and "another unit" not in result.err
    write_point_cloud(tmp_path / "5.ply", replace(cloud, meters_per_unit=None))
    checked = run("data", "check", tmp_path)
    assert "5 good, 1 doubtful" in checked.out and "5.ply" in checked.err


def test_arrays_beside_points_and_photos_are_named_by_every_door(tmp_path):
    folder = tmp_path / "rooms"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        np.save(folder / f"room{number}_points.npy", random.normal(size=(300, 3)))
        np.save(folder / f"room{number}_colors.npy", random.integers(0, 256, (300, 3)).astype(np.float64))
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    checked = run("data", "check", folder)
    assert "3 files: 3 good" in checked.out
    described = run("data", "describe", folder)
    for result in (checked, described):
        assert "room0_colors.npy" in result.err and "photo.jpg" in result.err


def test_numbered_things_of_a_scan_have_colors_and_are_named(tmp_path):
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales = [0.001] * 3
    # Those that an inventory adds; none is told to be left out.
    columns = {"HeightAboveGround": "f4", "PredInstance": "i4", "PredScore": "f4"}
    header.add_extra_dims([laspy.ExtraBytesParams(*column) for column in columns.items()])
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = np.random.default_rng(0).uniform(0, 20, (3, 60))
    scan.classification = np.repeat([2, 5, 6], 20)
    scan["PredInstance"] = np.repeat([0, 3, 66, 68], [20, 20, 10, 10])
    scan["HeightAboveGround"] = np.repeat([0, 12.25, 4.5, 6.0], [20, 20, 10, 10])
    scan.write(str(tmp_path / "numbered.laz"))
    code, _, err = run("show", tmp_path / "numbered.laz", "--output", tmp_path / "page.html")
    assert code == 0 and not err
    shown, _ = content((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [coloring["name"] for coloring in shown["colorings"]] == ["object", "height"]
    (panel,) = shown["panels"]
    assert panel["note"].endswith(" · 2 buildings, 1 tree")
    buildings = ["building 66, 4.5\u00a0m", "building 68, 6.0\u00a0m"]
    assert panel["texts"] == [""] * 20 + ["tree 3, 12.2\u00a0m"] * 20 + [buildings[0]] * 10 + [buildings[1]] * 10
    colors = decoded(shown["colorings"][0]["values"], "<u1").reshape(60, 3)
    assert len(np.unique(colors, axis=0)) == 4 and (colors[:20] == 191).all()
    # Other scans are shown as ever.
    plain = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    plain.x = plain.y = plain.z = np.arange(4.0)
    plain.classification = [2, 2, 5, 6]
    plain.write(str(tmp_path / "plain.laz"))
    run("show", tmp_path / "plain.laz", "--output", tmp_path / "page.html")
    shown, _ = content((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [coloring["name"] for coloring in shown["colorings"]] == ["label", "height"]


def test_names_of_classes_that_a_training_refuses_are_told(tmp_path):
    for name in ("Mug", "mug_large", "mug", "Mug Large"):
        (tmp_path / "Case" / name).mkdir(parents=True)
        points = np.random.default_rng(len(name)).normal(size=(100, 3))
        np.save(tmp_path / "Case" / name / "a.npy", points)
    told = run("data", "check", tmp_path / "Case").err
    refused = run("train", tmp_path / "Case", "--output", tmp_path / "model")
    text = "classes 'Mug' (1 scans) and 'mug' (1) differ only in case or spaces; use one name for both"
    assert text in told and "'Mug Large' (1 scans) and 'mug_large' (1) differ" in told
    assert refused.code == 1 and text.partition("'Mug'")[0] in refused.err
