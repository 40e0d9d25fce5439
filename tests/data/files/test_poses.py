"""A pose is a pose or none in every format that states one; what is neither is refused by its name."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.errors import raises

from .builders import (
    SQUARE,
    TRIANGLES,
    e57,
    gltf,
    gltf_square,
    paged,
    pcd,
    pnts,
    ptx,
    threemf,
    threemf_mesh,
    threemf_model,
)
from .test_e57 import changed

PLACE = (100.0, 200.0, 3.0)
E57_POINTS = np.random.default_rng(0).normal(size=(40, 3))
# A turn by a right angle about z.
TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
HALF = 0.5**0.5
QUATERNIONS = {  # w x y z
    "identity": (1, 0, 0, 0),
    "zeros": (0, 0, 0, 0),
    "turned": (HALF, 0, 0, HALF),
    "unnormalized": (3, 0, 0, 3),
    "tiny": (1e-30, 0, 0, 1e-30),
    "nan": (np.nan, 0, 0, 0),
    "infinite": (1, 0, np.inf, 0),
}
MATRICES = {
    "identity": np.eye(3),
    "zeros": np.zeros((3, 3)),
    "turned": TURN,
    "nan": np.full((3, 3), np.nan),
    "infinite": np.diag([1, 1, np.inf]),
    "singular": np.diag([1.0, 0, 0]),
    "sheared": np.array([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]]),
}
TURNS = {"turned": TURN, "unnormalized": TURN, "tiny": TURN}


def e57_of(rotation) -> bytes:
    parts = {"translation": dict(zip("xyz", PLACE, strict=True))}
    if rotation is not None:
        parts["rotation"] = dict(zip("wxyz", rotation, strict=True))
    texts = ""
    for name, numbers in parts.items():
        inner = "".join(f'<{axis} type="Float">{number}</{axis}>' for axis, number in numbers.items())
        texts += f'<{name} type="Structure">{inner}</{name}>'
    return paged(changed(e57(is_paged=False), "<points ", f'<pose type="Structure">{texts}</pose><points '))


def ptx_of(rotation) -> bytes:
    transform = np.zeros((4, 4)) if rotation is None else np.eye(4)
    transform[3, :3] = PLACE
    if rotation is not None:
        transform[:3, :3] = rotation.T
    return ptx((np.column_stack([SQUARE + 1, np.ones(4)]), transform))


def ptx_without_transform(rotation) -> bytes:
    """The transform is 0, and the position and the axes of the scanner are not."""
    axes = "" if rotation is None else "\r\n".join(" ".join(map(str, row)) for row in rotation.T.tolist())
    data = ptx((np.column_stack([SQUARE + 1, np.ones(4)]), np.zeros((4, 4)))).decode()
    place = " ".join(map(str, PLACE))
    zeros = "\r\n".join(["0 0 0"] * 3)
    return data.replace("0 0 0\r\n1 0 0\r\n0 1 0\r\n0 0 1", f"{place}\r\n{axes or zeros}").encode()


def node_of(**node) -> bytes:
    document, chunk = gltf_square(nodes=[{"mesh": 0, **node}])
    return gltf(document, chunk)


def gltf_rotation(rotation) -> bytes:
    return (
        node_of(translation=PLACE)
        if rotation is None
        else node_of(translation=PLACE, rotation=[*rotation[1:], rotation[0]])
    )


def gltf_matrix(rotation) -> bytes:
    matrix = np.eye(4)
    matrix[:3, :3] = 0 if rotation is None else rotation
    matrix[:3, 3] = PLACE
    return node_of(matrix=matrix.T.reshape(-1).tolist())


def gltf_instances(rotation) -> bytes:
    document, chunk = gltf_square()
    tables = {"TRANSLATION": PLACE}
    if rotation is not None:
        tables["ROTATION"] = [*rotation[1:], rotation[0]]
    attributes = {}
    for name, numbers in tables.items():
        data = np.array(numbers, "<f4").tobytes()
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(chunk), "byteLength": len(data)})
        kind = f"VEC{len(numbers)}"
        view = len(document["bufferViews"]) - 1
        document["accessors"].append({"bufferView": view, "componentType": 5126, "count": 1, "type": kind})
        attributes[name] = len(document["accessors"]) - 1
        chunk += data
    document["buffers"] = [{"byteLength": len(chunk)}]
    document["nodes"] = [{"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}]
    return gltf(document, chunk)


def threemf_of(rotation) -> bytes:
    turn = np.zeros((3, 3)) if rotation is None else rotation.T
    numbers = [*turn.reshape(-1), *PLACE]
    item = f'<item objectid="1" transform="{" ".join(map(str, numbers))}"/>'
    return threemf(threemf_model(f'<object id="1">{threemf_mesh(SQUARE, TRIANGLES)}</object>', item))


@dataclass(frozen=True)
class Form:
    """How a format states a pose, None for one that is missing, and what it says of a wrong one."""

    kind: str
    write: Callable
    poses: dict
    points: np.ndarray = field(default_factory=SQUARE.copy)
    names: str = "rotation"
    takes: tuple = ()  # wrong poses that mean something in the format


FORMS = {
    "e57": Form("e57", e57_of, QUATERNIONS, E57_POINTS, r"the rotation \(w x y z\) of scan 1 is "),
    "ptx": Form("ptx", ptx_of, MATRICES, SQUARE + 1, "the rotation from line 7 on is "),
    "ptx without transform": Form(
        "ptx", ptx_without_transform, MATRICES, SQUARE + 1, "the rotation from line 3 on is "
    ),
    "glTF rotation": Form("glb", gltf_rotation, QUATERNIONS, names="the rotation of node 0 is "),
    "glTF matrix": Form("glb", gltf_matrix, MATRICES, names="the matrix of node 0 is ", takes=("singular", "sheared")),
    "glTF instances": Form("glb", gltf_instances, QUATERNIONS, names=r"ROTATION of instances of node 0 is "),
    "3mf": Form("3mf", threemf_of, MATRICES, names="the transform of object '1' is ", takes=("sheared",)),
}
CASES = [(form, pose) for form, each in FORMS.items() for pose in (*each.poses, "missing")]


@pytest.mark.parametrize(("form", "pose"), CASES)
def test_a_pose_is_a_pose_or_none_and_what_is_neither_is_named(form, pose):
    expected = FORMS[form]
    data = expected.write(expected.poses.get(pose))
    is_wrong = pose in ("nan", "infinite", "singular", "sheared") and pose not in expected.takes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if is_wrong:
            with pytest.raises(PointCloudFileError, match=expected.names) as caught:
                read_point_cloud(data, file_type=expected.kind)
            assert "\n" not in str(caught.value) and "damaged" not in str(caught.value)
            return
        cloud = read_point_cloud(data, file_type=expected.kind)
    turn = MATRICES[pose] if pose in expected.takes else TURNS.get(pose, np.eye(3))
    found = cloud.points + (0 if cloud.offset is None else cloud.offset)
    np.testing.assert_allclose(found, expected.points @ turn.T + PLACE, atol=2e-5)
    if cloud.scanner is not None:
        np.testing.assert_allclose(cloud.scanner + (0 if cloud.offset is None else cloud.offset), PLACE)


@pytest.mark.parametrize(
    ("viewpoint", "scanner", "is_told"),
    [
        ("0 0 0 1 0 0 0", None, False),
        ("0 0 0 0 0 0 0", None, False),
        ("0 0 0 -2 0 0 0", None, False),
        ("0 0 0 0 0 0 1", [0, 0, 0], True),
        ("1 2 3 0 0 0 0", [1, 2, 3], True),
        ("1 2 3 nan 0 0 0", [1, 2, 3], True),
        ("nan 2 3 1 0 0 0", None, True),
        ("1 2 3", None, False),
    ],
)
def test_the_viewpoint_of_pcd_moves_no_points_and_is_told_where_it_is_a_pose(viewpoint, scanner, is_told):
    data = pcd("x y z", "4 4 4", "F F F", SQUARE.astype("<f4").tobytes(), 4, VIEWPOINT=viewpoint)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(data, file_type="pcd")
    assert (cloud.points == SQUARE).all() and bool(told) == is_told
    assert (None if cloud.scanner is None else cloud.scanner.tolist()) == scanner


@pytest.mark.parametrize(
    ("data", "kind", "naming"),
    [
        (node_of(rotation=[0, 0, 1]), "glb", "rotation of node 0"),
        (node_of(rotation="x"), "glb", "rotation of node 0"),
        (node_of(translation=[0, 0, np.nan]), "glb", "translation of node 0"),
        (node_of(scale=[1, np.inf, 1]), "glb", "scale of node 0"),
        (node_of(matrix=[1, 2, 3]), "glb", "matrix of node 0"),
        (e57_of(("x", 0, 0, 0)), "e57", "the rotation of scan 1"),
        (threemf_of(np.ones((2, 3))), "3mf", "transform of object '1'"),
        (
            pnts({"POINTS_LENGTH": 1, "RTC_CENTER": [0, 0, np.nan], "POSITION": {"byteOffset": 0}}, bytes(12)),
            "pnts",
            "RTC_CENTER",
        ),
    ],
)
def test_numbers_of_a_pose_that_are_none_are_named(data, kind, naming):
    with raises(PointCloudFileError, naming=naming):
        read_point_cloud(data, file_type=kind)


def test_a_scale_of_zeros_hides_a_mesh():
    """As the specification of glTF says: it is how animations show and hide."""
    document, chunk = gltf_square(nodes=[{"mesh": 0, "scale": [0, 0, 0]}, {"mesh": 0}], scenes=[{"nodes": [0, 1]}])
    assert len(read_point_cloud(gltf(document, chunk), file_type="glb")) == 4
    hidden = json.loads(json.dumps({**document, "scenes": [{"nodes": [0]}]}))
    with raises(PointCloudFileError, naming="shows no points"):
        read_point_cloud(gltf(hidden, chunk), file_type="glb")
