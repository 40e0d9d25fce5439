"""Labels of points in a file beside the cloud, for which the reader is asked: in every form, or words about them."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.errors import raises

from .builders import npy, npz, sweep

COUNT = 300
LABELS = np.random.default_rng(3).integers(0, 17, COUNT)
LARGE = np.random.default_rng(4).integers(0, 250, COUNT)
WORDS = [("car", "tree", "wall")[label % 3] for label in LABELS]
NUMBERED = [label % 3 for label in LABELS]


def lines(values, header="", end="\n"):
    return (header + "".join(f"{value}{end}" for value in values)).encode()


# Ending of a file -> its content, and the labels that it has.
FORMS = {
    "u1.bin": (LABELS.astype("u1").tobytes(), LABELS),
    "large_u1.bin": (LARGE.astype("u1").tobytes(), LARGE),
    "u1.label": (LABELS.astype("u1").tobytes(), LABELS),
    "u1.dat": (LABELS.astype("u1").tobytes(), LABELS),
    "u1.raw": (np.full(COUNT, 10, "u1").tobytes(), np.full(COUNT, 10)),
    "letters.bin": (np.full(COUNT, 65, "u1").tobytes(), np.full(COUNT, 65)),
    "u2.bin": (LARGE.astype("<u2").tobytes(), LARGE),
    "u2.label": (LARGE.astype("<u2").tobytes(), LARGE),
    "u4.label": ((LARGE + (np.arange(COUNT) << 16)).astype("<u4").tobytes(), LARGE),
    "u4.bin": (LARGE.astype("<u4").tobytes(), LARGE),
    "i4.bin": ((LARGE - 1).astype("<i4").tobytes(), LARGE - 1),
    "f4.bin": (LARGE.astype("<f4").tobytes(), LARGE),
    "i8.bin": (LARGE.astype("<i8").tobytes(), LARGE),
    "f8.bin": (LARGE.astype("<f8").tobytes(), LARGE),
    "i8.npy": (npy(LABELS), LABELS),
    "u1.npy": (npy(LABELS.astype("u1")), LABELS),
    "column.npy": (npy(LABELS[:, None]), LABELS),
    "words.npy": (npy(np.array(WORDS)), NUMBERED),
    "one.npz": (npz(data=LABELS.astype("u2")), LABELS),
    "named.npz": (npz(labels=LABELS, score=LABELS / 9), LABELS),
    "npz_under.bin": (npz(data=LABELS), LABELS),
    "npy_under.label": (npy(LABELS), LABELS),
    "a.txt": (lines(LABELS), LABELS),
    "a.labels": (lines(LABELS), LABELS),
    "a.seg": (lines(LABELS, end="\r\n"), LABELS),
    "text.label": (lines(LABELS), LABELS),
    "text.bin": (lines(LABELS), LABELS),
    "words.txt": (lines(WORDS), NUMBERED),
    "quotes.csv": (lines([f'"{word}"' for word in WORDS], "class\n"), NUMBERED),
    "column.csv": (lines(LABELS, "label\n"), LABELS),
    "table.csv": (lines([f"{row},{label},0.5" for row, label in enumerate(LABELS)], "id,label,score\n"), LABELS),
    "table.txt": (lines([f"{label}\t{row}" for row, label in enumerate(LABELS)], "Classification\ttime\n"), LABELS),
    "words_table.csv": (lines([f"{row};{word}" for row, word in enumerate(WORDS)], "point;class\n"), NUMBERED),
}


@pytest.fixture
def cloud(tmp_path):
    (tmp_path / "a.pcd.bin").write_bytes(sweep(5, COUNT))
    return tmp_path / "a.pcd.bin"


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_form_are_read(form, cloud):
    data, labels = FORMS[form]
    place = cloud.with_name(f"labels_{form}")
    place.write_bytes(data)
    with pytest.warns(UserWarning, match=f"labels are read from {place.name}"):
        read = read_point_cloud(cloud, label_file=place)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.label_names == (("car", "tree", "wall") if labels is NUMBERED else None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", ["a point less", "cut off", "empty"])
def test_another_number_of_labels_is_refused_with_the_forms(change, form, cloud):
    data, _ = FORMS[form]
    if change == "a point less":
        cloud.write_bytes(sweep(5, COUNT - 1))
    place = cloud.with_name(f"labels_{form}")
    place.write_bytes({"a point less": data, "cut off": data[:-1], "empty": b""}[change])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = read_point_cloud(cloud, label_file=place)
        except PointCloudFileError as error:
            said = str(error)
            assert place.name in said and "\n" not in said
            if change == "a point less":
                assert ".npy" in said
        else:
            # Only the end of the last line is missing.
            assert change == "cut off" and len(read.labels) == COUNT


def test_a_size_of_two_meanings_is_refused(tmp_path):
    # Two faces for four points: four bytes may be one for each point or two for each face.
    (tmp_path / "a.off").write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n")
    (tmp_path / "a.u8").write_bytes(bytes(range(4)))
    with raises(PointCloudFileError, naming="may be 1 for each of 4 points or 2 for each of 2 faces"):
        read_point_cloud(tmp_path / "a.off", label_file=tmp_path / "a.u8")
    (tmp_path / "a.u8").write_bytes(bytes([0, 1]))
    with pytest.warns(UserWarning, match="face labels"):
        assert read_point_cloud(tmp_path / "a.off", label_file=".u8").face_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("ending", "content", "what"),
    [
        (".npy", npy(np.zeros((COUNT, 2))), "(300, 2)"),
        (".npy", npy(np.full(COUNT, 0.5)), "whole numbers"),
        (".npz", npz(a=LABELS, b=LABELS), "expected one array"),
        (".txt", b"1, 2\n3, 4\n", "several values"),
        (".txt", np.arange(COUNT * 3).astype("u1").tobytes(), "bytes for 300 points"),
    ],
)
def test_what_is_no_label_each_is_refused_by_the_name_of_its_file(ending, content, what, cloud):
    place = cloud.with_name(f"seg{ending}")
    place.write_bytes(content)
    with raises(PointCloudFileError, naming=place.name) as refusal:
        read_point_cloud(cloud, label_file=place)
    assert what in str(refusal.value)
