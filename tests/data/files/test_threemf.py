"""3MF: meshes placed on a plate, written here by construction, and by trimesh where its extras are there."""

import io
import zipfile

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud, source, threemf as threemf_reader
from tests.errors import raises

from .builders import SQUARE, TRIANGLES, threemf, threemf_mesh, threemf_model, threemf_plate

MESH = threemf_mesh(SQUARE, TRIANGLES)
ITEM = '<item objectid="1"/>'


def read(resources, items=ITEM, **options):
    return read_point_cloud(threemf(threemf_model(resources, items, **options)), file_type="3mf")


def test_items_and_components_are_placed_and_colored():
    data = threemf_plate()
    cloud = read_point_cloud(data, file_type="3mf")
    # As a component turned by a right angle about z and moved, then as an item twice as large and one up.
    turned = np.column_stack([10 - SQUARE[:, 1], SQUARE[:, 0], SQUARE[:, 2]]) * 2 + [0, 0, 1]
    np.testing.assert_allclose(cloud.points, np.concatenate([turned, SQUARE]), atol=1e-6)
    assert cloud.faces.tolist() == [*TRIANGLES.tolist(), *(TRIANGLES + 4).tolist()]
    assert cloud.face_colors.tolist() == [[1, 0, 0], [0, 1, 0]] * 2
    assert cloud.up_axis == "z" and cloud.meters_per_unit == 0.01
    assert file_type_of(data) == "3mf"


@pytest.mark.parametrize("spelled", [str.upper, str.lower, str.title])
def test_names_of_parts_are_the_same_in_any_capitals(spelled):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(threemf_plate())) as whole, zipfile.ZipFile(file, "w") as archive:
        for info in whole.infolist():
            archive.writestr(spelled(info.filename), whole.read(info))
    data = file.getvalue()
    expected = read_point_cloud(threemf_plate(), file_type="3mf")
    np.testing.assert_array_equal(read_point_cloud(data, file_type="3mf").points, expected.points)
    assert file_type_of(data) == "3mf"


@pytest.mark.parametrize(
    ("unit", "meters"), [(None, 1e-3), ("micron", 1e-6), ("inch", 0.0254), ("foot", 0.3048), ("meter", 1)]
)
def test_the_unit_is_that_of_the_file(unit, meters):
    assert read(f'<object id="1">{MESH}</object>', unit=unit).meters_per_unit == meters


def test_a_mirrored_mesh_keeps_its_outside():
    cloud = read(f'<object id="1">{MESH}</object>', '<item objectid="1" transform="-1 0 0 0 1 0 0 0 1 0 0 0"/>')
    assert cloud.faces.tolist() == TRIANGLES[:, [0, 2, 1]].tolist() and cloud.points[:, 0].max() == 0


def test_what_is_not_read_is_told():
    textures = '<m:texture2dgroup id="7" texid="8"><m:tex2coord u="0" v="0"/></m:texture2dgroup>'
    with pytest.warns(UserWarning, match="ignored: textures"):
        assert read(f'{textures}<object id="1" pid="7" pindex="0">{MESH}</object>').face_colors is None
    colors = '<m:colorgroup id="6"><m:color color="#0000FF"/><m:color color="#00FF00"/></m:colorgroup>'
    mesh = threemf_mesh(SQUARE, TRIANGLES, ['pid="6" p1="1" p2="0" p3="1"', 'pid="6" p1="0"'])
    with pytest.warns(UserWarning, match="ignored: colors that change within a triangle"):
        cloud = read(f'{colors}<object id="1">{mesh}</object>')
    assert cloud.face_colors.tolist() == [[0, 1, 0], [0, 0, 1]]
    mesh = threemf_mesh(SQUARE, TRIANGLES, ['pid="6" p1="1"', ""])
    with pytest.warns(UserWarning, match="1 of 2 triangles have no color"):
        assert read(f'{colors}<object id="1">{mesh}</object>').face_colors is None


def test_slices_have_vertices_of_their_own():
    slices = '<slicestack id="9"><slice ztop="1"><vertices><vertex x="9" y="9"/></vertices></slice></slicestack>'
    with pytest.warns(UserWarning, match="ignored: slices"):
        assert read(f'<object id="1">{MESH}</object>{slices}').points.tolist() == SQUARE.tolist()


GROUP = '<object id="{}"><components>{}</components></object>'
COMPONENT = '<component objectid="{}"/>'
WRONG = {
    "no item": (f'<object id="1">{MESH}</object>', "", "item"),
    "no object": ("", ITEM, "'1'"),
    "no mesh": ('<object id="1"/>', ITEM, "mesh"),
    "corner outside": (f'<object id="1">{threemf_mesh(SQUARE, TRIANGLES + 2)}</object>', ITEM, "corner"),
    "negative corner": (f'<object id="1">{threemf_mesh(SQUARE, TRIANGLES - 1)}</object>', ITEM, "corner"),
    "no number": (f'<object id="1">{MESH.replace("2.0", "two")}</object>', ITEM, "3mf"),
    "another unit": ('</resources></model><model unit="mile"><resources>', ITEM, "3mf"),
    "another material": (
        f'<m:colorgroup id="6"><m:color color="#0000FF"/></m:colorgroup><object id="1" pid="6" pindex="9">{MESH}'
        "</object>",
        ITEM,
        "3mf",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_refused(name):
    resources, items, naming = WRONG[name]
    with raises(PointCloudFileError, naming=naming):
        read(resources, items)


def test_entities_are_refused_in_any_encoding():
    entities = '<!DOCTYPE a [<!ENTITY b "1">]>'
    model = threemf_model(f'<object id="1">{MESH}</object>', ITEM).replace("?><model", f"?>{entities}<model")
    for text in (model, model.replace("UTF-8", "UTF-16").encode("utf-16")):
        with raises(PointCloudFileError, naming="entities"):
            read_point_cloud(threemf(text), file_type="3mf")


@pytest.mark.parametrize("most", [2, 4, 5])
def test_parts_on_the_plate_are_counted(most, monkeypatch):
    # Two groups of two: six parts, as a group counts, too.
    monkeypatch.setattr(threemf_reader, "_MAX_PARTS", most)
    resources = f'<object id="1">{MESH}</object>' + GROUP.format(2, 2 * COMPONENT.format(1))
    with raises(PointCloudFileError, naming=f"more than {most} parts"):
        read(resources, 2 * '<item objectid="2"/>')


def test_a_package_that_unpacks_to_much_more_or_is_cut_is_refused(monkeypatch):
    monkeypatch.setattr(source, "FREE_BYTES", 1000)
    file = io.BytesIO(threemf_plate())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("3D/a.model", b" " * 100_000)  # of two files of one name, the last counts
    with raises(PointCloudFileError, naming="times the"):
        read_point_cloud(file.getvalue(), file_type="3mf")
    data = threemf_plate()
    for size in (10, len(data) // 2, len(data) - 1):
        with pytest.raises(PointCloudFileError):
            read_point_cloud(data[:size], file_type="3mf")


def test_a_plate_of_trimesh_is_as_it_reads_it():
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("lxml")
    box, ball = trimesh.creation.box((1, 2, 3)), trimesh.creation.icosphere(subdivisions=1)
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.add_geometry(ball, transform=trimesh.transformations.rotation_matrix(0.5, [1, 2, 3]))
    data = scene.export(file_type="3mf")
    expected = trimesh.load(io.BytesIO(data), file_type="3mf").to_mesh()
    cloud = read_point_cloud(data, file_type="3mf")
    np.testing.assert_allclose(cloud.points, expected.vertices, atol=1e-6)
    assert (cloud.faces == expected.faces).all() and cloud.meters_per_unit == 1e-3
