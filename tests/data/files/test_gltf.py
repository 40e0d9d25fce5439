import base64
import json

import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import SQUARE, TRIANGLES, gltf, gltf_square


def read(data, kind="glb"):
    return read_point_cloud(data, file_type=kind)


def test_a_scene_with_an_empty_mesh_is_read_without_it():
    empty = {"bufferView": 0, "componentType": 5126, "count": 0, "type": "VEC3"}
    document, chunk = gltf_square(nodes=[{"mesh": 0, "children": [1]}, {"mesh": 1}])
    document["accessors"].append(empty)
    document["meshes"].append({"primitives": [{"attributes": {"POSITION": 2}}]})
    cloud = read(gltf(document, chunk))
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()
    document, chunk = gltf_square()
    document["accessors"][1]["count"] = 0  # of the corners of faces
    cloud = read(gltf(document, chunk))
    assert (cloud.points == SQUARE).all() and not cloud.is_mesh


def test_buffers_may_be_in_the_text_or_in_the_folder_but_not_outside(tmp_path):
    document, chunk = gltf_square()
    document["asset"] = {"version": "2.0"}
    (tmp_path / "models").mkdir()
    for folder in (tmp_path, tmp_path / "models"):
        (folder / "data file.bin").write_bytes(chunk)
    path = tmp_path / "models" / "square.gltf"

    def with_uri(uri):
        document["buffers"] = [{"byteLength": 60, "uri": uri}]
        path.write_text(json.dumps(document))
        return read_point_cloud(path)

    text = base64.b64encode(chunk).decode()
    inside = (
        "data%20file.bin",
        "data:application/octet-stream;base64," + text,
        "data:;base64," + text.replace("=", "%3D").replace("A", "%41"),
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in chunk),
    )
    for uri in inside:
        assert (with_uri(uri).points == SQUARE).all()
    outside = ("../data file.bin", str(tmp_path / "data file.bin"), "http://localhost/data.bin", "file:///etc/passwd")
    for uri in outside:
        with pytest.raises(PointCloudFileError):
            with_uri(uri)
    with pytest.raises(PointCloudFileError):
        with_uri("data:;base64,???")
    document["buffers"] = [{"byteLength": 60, "uri": "data%20file.bin"}]
    with pytest.raises(PointCloudFileError):
        read(json.dumps(document).encode(), "gltf")  # bytes have no folder


def test_a_mesh_shown_too_often_is_refused():
    nodes = [{"children": list(range(1, 4501))}] + [{"mesh": 0}] * 4500
    document, _ = gltf_square(nodes=nodes, meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}])
    count = 4000
    document["accessors"][0]["count"] = count
    document["bufferViews"][0]["byteLength"] = document["buffers"][0]["byteLength"] = count * 12
    with pytest.raises(PointCloudFileError):
        read(gltf(document, bytes(count * 12)))


def test_a_buffer_with_too_few_bytes_is_told_by_its_number():
    """An empty buffer is none to numpy, which then returns what its new memory holds."""
    document, chunk = gltf_square()
    for stored, told in ((None, "has neither a uri nor"), (b"", "has 0 of the"), (chunk[:20], "has 20 of the")):
        damaged = dict(document, asset={"version": "2.0"}, buffers=[{"byteLength": 60}])
        if stored is not None:
            uri = "data:;base64," + base64.b64encode(stored).decode()
            damaged["buffers"] = [{"byteLength": 60, "uri": uri}]
            with pytest.raises(PointCloudFileError, match=rf"buffers\[0\] {told}"):
                read(gltf(document, stored))
        with pytest.raises(PointCloudFileError, match=rf"buffers\[0\] {told}"):
            read(json.dumps(damaged).encode(), "gltf")
    document["asset"] = {"version": "2.0"}
    with pytest.raises(PointCloudFileError, match=r"no buffers\[0\].*there are 0"):
        read(json.dumps(dict(document, buffers=[])).encode(), "gltf")
    with pytest.raises(PointCloudFileError, match=r"buffers\[0\] has the uri '3'; expected text"):
        read(json.dumps(dict(document, buffers=[{"uri": 3}])).encode(), "gltf")
