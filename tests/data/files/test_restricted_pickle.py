import pickle
import pickletools
import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.files.restricted_pickle import read_pickle

SOME = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def reading(tmp_path):
    """Write bytes, or a value as a pickle, and read them."""

    def read(content, **options):
        path = tmp_path / "some.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return read_pickle(path, **options)

    return read


def assert_same(seen, expected):
    assert type(seen) is type(expected)
    if isinstance(expected, np.ndarray):
        assert seen.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")  # numpy may swap bytes
        np.testing.assert_array_equal(seen, expected)
    elif isinstance(expected, dict):
        assert list(seen) == list(expected)
        for key in expected:
            assert_same(seen[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(seen) == len(expected)
        for a, b in zip(seen, expected, strict=True):
            assert_same(a, b)
    else:
        assert seen == expected


VALUES = [
    [[SOME, SOME[::2], np.asfortranarray(SOME)], [np.array([3], np.int32), np.array([-1], np.int32)]],
    {"train": [(SOME, 0, 13)], "test": [(SOME + 1, np.int64(1), 2.5)]},
    [SOME.astype(kind) for kind in ("f8", ">f4", "i1", "u2", ">i8", "?", "f2")],
    (np.zeros((0, 3)), np.float32(1.5), np.bool_(True), np.array(["chair", "ü"]), np.array([b"x"])),
    [None, True, -5, 300, 70000, -(2**40), 2**63, "text" * 100, "", (), {}, [], {1: 2, "a": (1,)}, (1, 2, 3, 4)],
    [[1, 2]] * 3,
]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=["clouds", "folds", "types", "scalars", "plain", "shared"])
def test_values_written_by_numpy_and_python_are_read_back(reading, value, protocol):
    assert_same(reading(pickle.dumps(value, protocol)), value)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_numpy_1_and_2_are_both_read(reading, protocol):
    new = pickle.dumps([SOME, np.float32(2)], protocol)
    assert b"numpy._core" in new
    if protocol == 4:  # the lengths of the names are written down, and of the frame
        old = new.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        old = old[:3] + struct.pack("<Q", len(old) - 11) + old[11:]
        assert pickletools.dis(old, out=open("/dev/null", "w")) is None
    else:
        old = new.replace(b"cnumpy._core.", b"cnumpy.core.")
    assert old != new
    assert_same(reading(old), [SOME, np.float32(2)])


@pytest.mark.slow
def test_pickles_of_python_2_are_read(reading):
    raw = SOME.tobytes()
    state = b"(K\x01K\x04K\x03\x86q\x03cnumpy\ndtype\nq\x04U\x02f4q\x05K\x00K\x01\x87q\x06Rq\x07"
    state += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    make = b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87q\x02R"
    text = b"\x80\x02]" + make + state + b"T" + struct.pack("<i", len(raw)) + raw + b"tba."
    assert_same(reading(text), [SOME])


class Calls:
    """An object that pickles as a call of its arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def never(*_):
    raise AssertionError("the file ran code")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (__import__("os").system, "posix.system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (__import__, "__import__"),
        (__import__("subprocess").Popen, "Popen"),
        (np.load, "numpy.load"),
        (np.fromfile, "numpy.*fromfile"),
        (np.zeros, "numpy.*zeros"),
        (bytearray, "bytearray"),
        (never, "never"),
    ],
)
def test_calls_are_refused_by_name_and_not_made(reading, tmp_path, function, name, protocol):
    target = tmp_path / "made"
    for value in (Calls(function, f"open({str(target)!r}, 'w')"), [SOME, {"a": Calls(function, 1)}]):
        with pytest.raises(PointCloudFileError):
            reading(pickle.dumps(value, protocol))
    assert not target.exists()


# numpy reads the last one, whose type has fields.
@pytest.mark.parametrize(
    "value", [range(3), bytearray(b"abc"), {1, 2}, np.ma.masked_array([1, 2]), np.zeros(2, [("x", "f4")])]
)
def test_other_objects_are_refused(reading, value):
    with pytest.raises(PointCloudFileError):
        reading(pickle.dumps(value, 2))


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02N", b"\x80\x02.", b"\x80\x09N.", b"\x80\x02h\x05."])
def test_damaged_pickles_are_named(reading, content):
    with pytest.raises(PointCloudFileError):
        reading(content)


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        # Fields of another type; numpy itself refuses them, too.
        (b"NNNJ", b"NN]J"),
        (b"K\x04K\x03\x86", b"K\x04K\x04\x86"),  # a shape of more numbers than there are
        (b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00?"),  # no byte order; numpy reads it
        (b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00O8"),  # objects
    ],
)
def test_damaged_states_of_numpy_are_errors_of_the_file(reading, whole, damaged):
    content = pickle.dumps(SOME, 2)
    assert whole in content
    with pytest.raises(PointCloudFileError):
        reading(content.replace(whole, damaged))
    assert np.dtype("f4") == np.float32 and np.dtype("f4").isnative
