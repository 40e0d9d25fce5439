"""Depth images with intrinsics: the forms that programs and phones write, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from hf_any3d.data.files import Intrinsics, PointCloudFileError, ReadLimits, read_point_cloud, read_rgbd
from tests.cli.conftest import run
from tests.errors import raises

WIDTH, HEIGHT = 8, 6
FX, FY, CX, CY = 10.0, 12.0, 3.5, 2.5
OPEN3D = {"width": WIDTH, "height": HEIGHT, "intrinsic_matrix": [FX, 0, 0, 0, FY, 0, CX, CY, 1]}
FORMS = {
    "Open3D": OPEN3D,
    "Record3D": {"w": WIDTH, "h": HEIGHT, "fps": 60, "K": [FX, 0, 0, 0, FY, 0, CX, CY, 1], "poses": []},
    "Polycam": {"fx": FX, "fy": FY, "cx": CX, "cy": CY, "width": WIDTH, "height": HEIGHT, "t_00": 1.0},
    "ARKit": {"width": WIDTH, "height": HEIGHT, "intrinsics": [FX, 0, CX, 0, FY, CY, 0, 0, 1]},
    "ROS 1": {"width": WIDTH, "height": HEIGHT, "K": [FX, 0, CX, 0, FY, CY, 0, 0, 1], "D": [0, 0, 0, 0, 0]},
    "ROS 2": {"width": WIDTH, "height": HEIGHT, "k": [FX, 0, CX, 0, FY, CY, 0, 0, 1], "d": [0, 0, 0, 0, 0]},
    "ROS calibration": {
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "camera_matrix": {"rows": 3, "cols": 3, "data": [FX, 0, CX, 0, FY, CY, 0, 0, 1]},
    },
    "RealSense": {"fx": FX, "fy": FY, "ppx": CX, "ppy": CY, "width": WIDTH, "height": HEIGHT, "coeffs": [0] * 5},
}
FORMS["RealSense, within"] = {"intrinsics": FORMS["RealSense"], "depth_scale": 0.001}


@pytest.mark.parametrize(("form", "name"), [("ROS 2", "d"), ("RealSense", "coeffs")])
def test_a_distortion_that_is_left_out_is_named(form, name):
    with pytest.warns(UserWarning, match=f"distortion {name} of the camera"):
        Intrinsics.of({**FORMS[form], name: [0.1, 0, 0, 0, 0]})


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def millimeters() -> np.ndarray:
    """A depth (HEIGHT, WIDTH) of 1 to 2 m, with two pixels without one."""
    depth = np.linspace(1000, 2000, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    depth[0, 0] = depth[3, 4] = 0
    return depth


@pytest.fixture
def frame(tmp_path):
    (tmp_path / "depth.png").write_bytes(png(millimeters()))
    (tmp_path / "camera.json").write_text(json.dumps(OPEN3D))
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_points_project_back_to_their_pixels_in_order(form, frame):
    (frame / "camera.json").write_text(json.dumps(FORMS[form]))
    cloud = read_rgbd(frame / "depth.png", frame / "camera.json")
    x, y, z = cloud.points.T.astype(np.float64)
    row, column = np.nonzero(millimeters())
    np.testing.assert_allclose(x / z * FX + CX, column, atol=1e-5)
    np.testing.assert_allclose(y / z * FY + CY, row, atol=1e-5)
    np.testing.assert_allclose(z, millimeters()[row, column] / 1000, rtol=1e-6)
    assert len(cloud) == WIDTH * HEIGHT - 2 and cloud.colors is None


def test_scale_and_truncation_are_options(frame):
    camera = frame / "camera.json"
    far = read_rgbd(frame / "depth.png", camera, depth_scale=5000)
    np.testing.assert_allclose(far.points * 5, read_rgbd(frame / "depth.png", camera).points, rtol=1e-6)
    near = read_rgbd(frame / "depth.png", camera, depth_truncation=1.5)
    assert near.points[:, 2].max() <= 1.5 and len(near) == ((millimeters() > 0) & (millimeters() <= 1500)).sum()
    with pytest.raises(PointCloudFileError):
        read_rgbd(frame / "depth.png", camera, depth_truncation=0.5)
    for name in ("depth_scale", "depth_truncation"):
        with pytest.raises(ValueError, match=f"{name} is -1; expected at least"):
            read_rgbd(frame / "depth.png", camera, **{name: -1})


@pytest.mark.parametrize("times", [1, 4])
def test_colors_of_a_larger_image_belong_to_their_pixels(times, frame):
    picture = np.zeros((HEIGHT * times, WIDTH * times, 3), np.uint8)
    picture[..., 0] = np.arange(HEIGHT * times)[:, None] // times * 10
    picture[..., 1] = np.arange(WIDTH * times) // times * 10
    (frame / "color.png").write_bytes(png(picture))
    # Phones give the intrinsics of the color image.
    larger = Intrinsics(
        FX * times, FY * times, (CX + 0.5) * times - 0.5, (CY + 0.5) * times - 0.5, (8 * times, 6 * times)
    )
    cloud = read_rgbd(frame / "depth.png", larger, frame / "color.png")
    row, column = np.nonzero(millimeters())
    np.testing.assert_allclose(cloud.colors[:, :2] * 25.5, np.stack([row, column], axis=1), atol=1e-5)
    np.testing.assert_allclose(cloud.points, read_rgbd(frame / "depth.png", frame / "camera.json").points, rtol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"focal": 1},
        {"K": [1, 2]},
        {"K": [FX, 1, CX, 0, FY, CY, 0, 0, 1]},
        {**OPEN3D, "intrinsic_matrix": [0, 0, 0, 0, FY, 0, CX, CY, 1]},
        {**OPEN3D, "width": 7},
        {**OPEN3D, "width": 10**400},
        {"K": OPEN3D["intrinsic_matrix"]},
    ],
)
def test_other_intrinsics_are_refused(content, frame):
    (frame / "camera.json").write_text(json.dumps(content))
    with pytest.raises(PointCloudFileError):
        read_rgbd(frame / "depth.png", frame / "camera.json")


@pytest.mark.parametrize("given", ["depth", "depth/*.png", "**/[ab].png"])
def test_images_of_a_folder_or_glob_become_upright_clouds(given, frame, monkeypatch):
    monkeypatch.chdir(frame)
    (frame / "depth").mkdir()
    for name in "ab":
        (frame / "depth" / f"{name}.png").write_bytes(png(millimeters()))
    result = run("data", "from-depth", given, "--intrinsics", "camera.json", "--output", "clouds")
    assert result.code == 0, result.err
    expected = read_rgbd("depth.png", "camera.json").points * [1, -1, -1]
    for name in "ab":
        np.testing.assert_allclose(read_point_cloud(f"clouds/{name}.ply").points, expected)
    # What is further down in the image is lower.
    assert expected[0, 1] > expected[-1, 1]
    result = run("data", "from-depth", "*.exr", "--intrinsics", "camera.json", "--output", "clouds")
    assert result.code == 1 and "*.exr: no depth image; expected .png or .exr" in result.err


def test_no_cloud_replaces_another_one(frame):
    (frame / "second").mkdir()
    (frame / "second" / "depth.png").write_bytes(png(millimeters()))
    images = (frame / "depth.png", frame / "second" / "depth.png")
    words = ("data", "from-depth", *images, "--intrinsics", frame / "camera.json", "--output")
    result = run(*words, frame / "clouds")
    assert result.code == 1 and f"{images[0]}, {images[1]}: all would be written to " in result.err
    result = run(*words, frame / "cloud.ply")
    assert result.code == 1 and "cloud.ply has type" in result.err
    assert not (frame / "clouds").exists() and not (frame / "cloud.ply").exists()


def exr(path, **channels):
    OpenEXR = pytest.importorskip("OpenEXR")
    content = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(content, channels) as file:
        file.write(str(path))


@pytest.mark.parametrize("names", [("Y",), ("R", "Z"), ("Scene.Depth.V", "A"), ("R", "G", "B")])
def test_depths_of_exr_are_meters(names, frame):
    meters = millimeters().astype(np.float32) / 1000
    same = names[:1] if len(names) == 1 else names if "G" in names else [name for name in names if name[-1] in "ZV"]
    exr(frame / "depth.exr", **{name: meters if name in same else np.zeros_like(meters) for name in names})
    found = read_rgbd(frame / "depth.exr", frame / "camera.json")
    np.testing.assert_allclose(found.points, read_rgbd(frame / "depth.png", frame / "camera.json").points, rtol=1e-6)
    meters[:, 0] = [np.nan, np.inf, -1, 0, -np.inf, np.nan]
    exr(frame / "holes.exr", Z=meters)
    count = (np.isfinite(meters) & (meters > 0)).sum()
    assert len(read_rgbd(frame / "holes.exr", frame / "camera.json")) == count


def test_other_exr_files_are_refused(frame):
    meters = millimeters().astype(np.float32)
    exr(frame / "color.exr", R=meters, G=meters + 1, B=meters)
    exr(frame / "large.exr", Z=meters)
    (frame / "cut.exr").write_bytes((frame / "large.exr").read_bytes()[:-40])
    (frame / "other.exr").write_bytes(b"v/1\1")
    for name, limits in (
        ("color.exr", None),
        ("cut.exr", None),
        ("other.exr", None),
        ("large.exr", ReadLimits(points=10)),
    ):
        with pytest.raises(PointCloudFileError):
            read_rgbd(frame / name, frame / "camera.json", limits=limits)


@pytest.mark.parametrize("ending", ["png", "exr"])
def test_images_that_expand_too_far_are_refused_before_they_are_decoded(ending, frame):
    plane = np.random.default_rng(0).integers(1000, 2000, (300, 400))
    path = frame / f"plane.{ending}"
    if ending == "exr":
        exr(path, Z=plane.astype(np.float32))
    else:
        path.write_bytes(png(plane.astype(np.uint16)))
    camera = OPEN3D | {"width": 400, "height": 300}
    (frame / "camera.json").write_text(json.dumps(camera))
    assert len(read_rgbd(path, frame / "camera.json")) == 120_000
    with raises(PointCloudFileError, naming="480000 bytes; at most 479999"):
        read_rgbd(path, frame / "camera.json", limits=ReadLimits(bytes=479_999))


def test_the_command_writes_one_cloud_or_many(frame):
    (frame / "color.png").write_bytes(png(np.full((6, 8, 3), 255, np.uint8)))
    words = ("data", "from-depth", frame / "depth.png", "--intrinsics", frame / "camera.json")
    result = run(*words, "--color", frame / "color.png", "--output", frame / "cloud.ply")
    assert result.code == 0 and "cloud.ply: 46 points" in result.out
    assert (read_point_cloud(frame / "cloud.ply").colors == 1).all()
    (frame / "bad.png").write_bytes(b"no image")
    result = run(*words, frame / "bad.png", "--output", frame / "clouds")
    assert result.code == 2 and len(read_point_cloud(frame / "clouds" / "depth.ply")) == 46
    assert "bad.png: damaged" in result.err and "1 of 2 images could not be used" in result.err
    result = run(*words[:3], "--intrinsics", frame / "clouds", "--output", frame / "x.ply")
    assert result.code == 1 and "depth.json: no such file" in result.err


def test_intrinsics_follow_the_size_of_the_image_on_both_axes():
    camera = Intrinsics(500.0, 510.0, 320.25, 235.5, (1000, 750))
    assert camera.scaled_to(1000, 750) is camera
    found = camera.scaled_to(500, 372)  # as phones round
    across, down = 500 / 1000, 372 / 750
    expected = (500 * across, 510 * down, 320.75 * across - 0.5, 236 * down - 0.5)
    assert (found.fx, found.fy, found.cx, found.cy) == pytest.approx(expected) and found.size == (500, 372)
    for size in ((500, 365), (500, 384)):
        with pytest.raises(ValueError, match=f"1000, 750.; the depth image has {size[0]} x {size[1]}"):
            camera.scaled_to(*size)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"K": [[9, 0, 3], [0, 8, 2], [0, 0, 1]], "w": 7, "h": 5}, (9, 8, 3, 2, (7, 5))),
        ({"intrinsics": [[9, 0, 0], [0, 8, 0], [3, 2, 1]], "width": 7.0, "height": 5}, (9, 8, 3, 2, (7, 5))),
        ({"fx": 9, "fy": 8.5, "cx": 3, "cy": 2, "width": 7}, (9, 8.5, 3, 2, None)),
        ({"K": [9, 0, 3, 0, 8, 2, 0, 0, 1], "fx": 1, "fy": 1, "cx": 1, "cy": 1}, (9, 8, 3, 2, None)),
    ],
)
def test_intrinsics_are_read_by_rows_and_by_columns(content, expected):
    assert Intrinsics.of(content) == Intrinsics(*expected)
