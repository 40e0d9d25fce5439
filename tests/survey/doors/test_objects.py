"""A person with meshes of single objects whose faces have labels, in processes of their own."""

import json

import numpy as np
import pytest

from hf_any3d.data.files import read_point_cloud
from tests.training.generated_tiles import draw_jaw


@pytest.fixture(scope="module")
def jaws(shell):
    """Two jaws whose faces are labeled, and what `train` printed of them."""
    for number in range(2):
        vertices, faces, labels = draw_jaw(number)
        shell.write(f"jaws/{number}.ply", vertices, faces=faces, face_labels=labels)
    return shell("hf-any3d train jaws --task segmentation --merge gum=0 tooth=7")


def test_labeled_faces_are_learned_and_written_into_another_mesh(jaws, shell):
    assert "2 objects; labeled faces: gum" in jaws.out and "holding out whole objects" in jaws.out
    assert "95 % interval" in jaws.out
    report = json.loads((shell.folder / "outputs/jaws/metrics.json").read_text())
    assert report["metrics"]["held-out objects"]["mean_iou"] > 0.7
    vertices, faces, truth = draw_jaw(5)
    # In another unit, and far from the origin.
    path = shell.write("jaw.ply", vertices / 1000 + 7, faces=faces)
    done = shell("hf-any3d segment jaw.ply --model outputs/jaws --output jaw_labeled.ply")
    assert "tooth" in done.out
    before, labeled = read_point_cloud(path), read_point_cloud(shell.folder / "jaw_labeled.ply")
    np.testing.assert_array_equal(labeled.points, before.points)
    assert labeled.face_labels is not None and labeled.labels is not None
    assert {*labeled.face_labels.tolist()} == {*labeled.labels.tolist()} == {0, 7}
    assert (labeled.face_labels == truth).mean() > 0.9


def test_what_is_wrong_with_objects_is_said_by_one_line_each(shell):
    vertices, faces, labels = draw_jaw(3, rows=8)
    of_vertices = np.where(vertices[:, 2] > 4, 7, 0)
    shell.write("both/faces.ply", vertices, faces=faces, face_labels=labels)
    shell.write("both/vertices.ply", vertices, faces=faces, labels=of_vertices)
    shell.write("same/a.ply", vertices, faces=faces, face_labels=np.zeros(len(faces)))
    shell.write("some/a.ply", vertices, faces=faces, labels=of_vertices)
    shell.write("some/b.ply", vertices, faces=faces)
    shell.write("some/c.ply", np.zeros((9, 3)), labels=np.arange(9))
    done = shell.run(
        """
import sys
from hf_any3d_command import main
for folder in ("both", "same", "some"):
    sys.argv = ["hf-any3d", "train", folder, "--task", "segmentation"]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code)
"""
    )
    assert done.out.count("exit code 1") == 2
    assert "faces.ply: labels are on faces, but in vertices.ply on vertices" in done.err
    assert "one class (class 0) in 1 file" in done.err
    assert "b.ply: neither vertices nor faces have labels" in done.err
    assert "c.ply: all 9 points have the same coordinates" in done.err
    assert "1 object; labeled vertices:" in done.out
    assert "mean IoU: not evaluated, as no object could be held out" in done.out
