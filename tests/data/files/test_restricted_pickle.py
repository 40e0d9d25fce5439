import pickle
import pickletools
import struct
import time
import tracemalloc

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
        assert seen.dtype == expected.dtype
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


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=["clouds", "folds", "types", "scalars", "plain", "shared"])
def test_values_written_by_numpy_and_python_are_read_back(reading, value, protocol):
    assert_same(reading(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_numpy_1_and_2_are_both_read(reading, protocol):
    new = pickle.dumps([SOME, np.float32(2)], protocol)
    assert b"numpy._core" in new
    if protocol == 4:  # the lengths of the names are written down, and of the frame
        old = new.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        assert pickletools.dis(old, out=open("/dev/null", "w")) is None
    else:
        old = new.replace(b"cnumpy._core.", b"cnumpy.core.")
    assert old != new
    assert_same(reading(old), [SOME, np.float32(2)])


def test_pickles_of_python_2_are_read(reading):
    raw = SOME.tobytes()
    state = b"(K\x01K\x04K\x03\x86q\x03cnumpy\ndtype\nq\x04U\x02f4q\x05K\x00K\x01\x87q\x06Rq\x07"
    state += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    make = b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87q\x02R"
    text = b"\x80\x02]" + make + state + b"T" + struct.pack("<i", len(raw)) + raw + b"tba."
    assert_same(reading(text), [SOME])


def test_arrays_are_views_of_the_file(reading):
    (array,) = reading([np.zeros((1000, 3))])
    assert not array.flags.writeable and not array.flags.owndata


def test_memory_stays_small_however_large_the_file(reading, tmp_path):
    generator = np.random.default_rng(0)
    clouds = [generator.random((8192, 6)) for _ in range(61)]
    (tmp_path / "a").write_bytes(pickle.dumps(clouds))
    tracemalloc.start()
    value = read_pickle(tmp_path / "a")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20 and len(value) == 61
    tracemalloc.stop()


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
        with pytest.raises(PointCloudFileError, match=f"some.pkl: refers to .*{name}, which is refused"):
            reading(pickle.dumps(value, protocol))
    assert not target.exists()


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "posix\nsystem", "numpy.core.multiarray\nfromstring"]
)
def test_handwritten_calls_are_refused_too(reading, name):
    for call in (b"(X\x02\x00\x00\x00ls", b"(U\x02ls"):
        with pytest.raises(PointCloudFileError, match="refers to .*, which is refused"):
            reading(b"c" + name.encode() + b"\n" + call + b"tR.")


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a", None], object),
        np.array([Calls(never)], object),
        np.zeros(2, [("x", "f4"), ("y", "f4")]),
        np.zeros(2, "M8[s]"),
        np.ma.masked_array([1, 2]),
        {1, 2},
        bytearray(b"abc"),
        range(3),
        slice(1, 2),
        1j,
    ],
    ids=lambda value: type(value).__name__ + (value.dtype.kind if isinstance(value, np.ndarray) else ""),
)
def test_other_objects_are_refused(reading, value):
    if isinstance(value, bytearray):  # protocol 5 has an instruction for these, whose content is plain bytes
        assert reading(pickle.dumps(value, 5)) == value
        value = pickle.dumps(value, 4)
    with pytest.raises(PointCloudFileError, match="some.pkl: .*(refused|expected)"):
        reading(value)


def test_object_arrays_with_calls_inside_are_refused(reading):
    with pytest.raises(PointCloudFileError, match="never, which is refused|type 'O8'"):
        reading(pickle.dumps(np.array([Calls(never)], object), 2))


def test_declared_lengths_beyond_the_file_allocate_nothing(reading):
    huge = struct.pack("<Q", 1 << 60)
    tracemalloc.start()
    for code in (b"\x8e", b"\x96", b"\x8d"):
        with pytest.raises(PointCloudFileError, match="1152921504606846976 bytes are declared and 3 are left"):
            reading(b"\x80\x05" + code + huge + b"ab.")
    with pytest.raises(PointCloudFileError, match="bytes are declared"):
        reading(b"\x80\x05\x8b\xff\xff\xff\x7fab."[:2] + b"T\xff\xff\xff\x7fab.")
    # A note with the highest number: Python's unpickler makes a table of that length.
    assert reading(b"\x80\x02K\x01r\xff\xff\xff\xff.") == 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_an_array_larger_than_its_bytes_is_refused(reading):
    text = pickle.dumps(np.zeros((7, 3), np.float32), 4)
    changed = text.replace(b"K\x07K\x03\x86", b"K\xffK\xff\x86")
    assert changed != text
    with pytest.raises(
        PointCloudFileError, match=r"shape \(255, 255\) and type float32 needs 260100 bytes and has 84"
    ):
        reading(changed)


def laughs(levels, width=10):
    """Lists of ten times the same list of ten times the same list, and so on."""
    text = b"\x80\x02]q\x00"
    for level in range(levels):
        text += b"](" + b"h" + bytes([level])
        text += (b"h" + bytes([level])) * (width - 1) + b"eq" + bytes([level + 1])
    return text + b"h" + bytes([levels]) + b"\x85."


def test_a_billion_laughs_are_refused(reading):
    start = time.process_time()
    with pytest.raises(PointCloudFileError, match="values left over|unfolded"):
        reading(laughs(9))
    value: list = ["ha"]
    for _ in range(9):
        value = [value] * 10
    with pytest.raises(PointCloudFileError, match="values with all repetitions"):
        reading(value)
    assert time.process_time() - start < 5


def test_text_cannot_be_multiplied_by_encoding(reading):
    text = b"\x80\x02X" + struct.pack("<I", 10_000) + b"a" * 10_000 + b"q\x000"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(PointCloudFileError, match="more bytes from text than the file has"):
        reading(text + call * 50 + b"N.")


def test_nesting_and_cycles_are_refused(reading):
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(PointCloudFileError, match="nested more than 50 deep"):
        reading(deep)
    with pytest.raises(PointCloudFileError, match="nested more than 50 deep"):
        reading(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(PointCloudFileError, match="a container contains itself"):
        reading(cycle)


def test_endless_work_is_stopped(reading):
    with pytest.raises(PointCloudFileError, match="more than 1000 instructions"):
        reading(b"\x80\x02" + b"N0" * 1000 + b"N.", max_opcodes=1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x80\x09N.", "protocol 9; expected 1 to 5"),
        (b"S'1'\n.", "the instruction 'S', which is refused"),
        (b"Iten\n.", "a number written 'ten'"),
        (b"\x80\x02N", "cut off"),
        (b"\x80\x02.", "uses a value that does not exist"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02t.", "a mark that does not exist"),
        (b"\x80\x02h\x05.", "refers to value 5"),
        (b"\x80\x02}N(Nu.", "expected a dict"),
        (b"\x80\x02}(Nu.", "no value"),
        (b"\x80\x02}]Ns.", "a key of type list"),
        (b"\x80\x02cnumpy\nndarray\n(K\x05tR.", "calls numpy.ndarray, which numpy does not do"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02O8tR.", "type 'O8'"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02f4tR.", "before it is complete"),
        (b"\x80\x02cos", "without an end"),
        (b"\x80\x02K\x01)R.", "other than a function of numpy"),
        (b"\x80\x04K\x01K\x02\x93.", "whose name is not text"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
    ],
)
def test_damaged_pickles_are_named(reading, content, message):
    with pytest.raises(PointCloudFileError, match=f"some.pkl: .*{message}"):
        reading(content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PointCloudFileError, match="absent.pkl: no such file"):
        read_pickle(tmp_path / "absent.pkl")


@pytest.mark.parametrize(
    ("of", "by"), [(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"), (b"K\x00\x85C\x01b", b"K\x02\x85C\x01b")]
)
def test_an_array_is_made_of_its_class_and_of_no_numbers(of, by, reading):
    assert reading(array_of(b"f8", b"K\x01\x85", b"C\x08" + bytes(8))) == [0]
    with pytest.raises(PointCloudFileError, match="some.pkl: .*another class; expected numpy.ndarray"):
        reading(array_of(b"f8", b"K\x01\x85", b"C\x08" + bytes(8)).replace(of, by, 1))


def array_of(kind, shape=b"K\x02\x85", raw=b"C\x00"):
    """A pickle of an array of a type written by hand."""
    state = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(kind)) + kind + b"tR" + state
    make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return b"\x80\x04" + make + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb."


@pytest.mark.parametrize("kind", [b"S0", b"U0", b"S", b"<U0", b"S00", b"S99999", b"V8"])
@pytest.mark.parametrize(
    "shape", [b"K\x02\x85", b"\x8a\x05\x00\xe4\x0b\x54\x02\x85", b"\x8a\x05\x00\xe4\x0b\x54\x02K\x00\x86"]
)
def test_types_whose_values_have_no_bytes_are_refused(reading, kind, shape):
    with pytest.raises(PointCloudFileError, match=r"some\.pkl: an array of type"):
        reading(array_of(kind, shape))


def test_arrays_of_very_many_rows_without_a_number_are_refused(reading):
    assert reading(array_of(b"f8", b"K\x05K\x00\x86")).shape == (5, 0)
    with pytest.raises(PointCloudFileError, match="shape .10000000000, 0. without numbers"):
        reading(array_of(b"f8", b"\x8a\x05\x00\xe4\x0b\x54\x02K\x00\x86"))


def test_invalid_characters_are_refused(reading):
    letters = np.array(["ab", "c"])
    raw = b"C" + bytes([letters.nbytes]) + letters.tobytes()
    assert_same(reading(array_of(b"U2", raw=raw)), letters)
    with pytest.raises(PointCloudFileError, match="has numbers that are not characters"):
        reading(array_of(b"U2", raw=raw.replace(b"a\0\0\0", b"a\0\0\xff")))


def test_keys_with_equal_hashes_are_refused(reading):
    modulus = 2**61 - 1
    for keys in ([modulus], [-modulus], [modulus * number for number in range(2, 2000)]):
        with pytest.raises(PointCloudFileError, match="a number as key that is too large; expected at most 60 bits"):
            reading(dict.fromkeys(keys))
    value = dict.fromkeys([modulus - 1, 1 - modulus, 0, "a", b"b"])
    assert reading(value) == value
    for key in (1.5, True, None, (1,)):
        with pytest.raises(PointCloudFileError, match="a dict with a key of type"):
            reading({key: 1})


class Counting(dict):
    """Count the reads of its values."""

    reads = 0

    def values(self):
        self.reads += 1
        return super().values()


def test_a_shared_container_is_checked_once():
    from hf_any3d.data.files import ReadLimits
    from hf_any3d.data.files.restricted_pickle import _check_tree

    shared = Counting.fromkeys(range(10))
    _check_tree([shared] * 1000, 10**6, 10**6, ReadLimits())
    assert shared.reads <= 2  # on entry and on exit


def test_a_shared_array_counts_each_time(reading):
    big = np.zeros(1 << 20)
    assert len(reading([big] * 30)) == 30
    with pytest.raises(PointCloudFileError, match=r"\d+ bytes expand to \d+; at most 32 times as many"):
        reading([big] * 40)


def test_scalars_of_long_text_cannot_be_multiplied(reading):
    text = np.array("a" * 1000)
    raw = b"B" + struct.pack("<I", text.nbytes) + text.tobytes()
    dtype = array_of(b"U1000").partition(b"cnumpy\ndtype")
    dtype = b"cnumpy\ndtype" + dtype[2][: dtype[2].index(b"tb") + 2]
    head = b"\x80\x04cnumpy.core.multiarray\nscalar\nq\x000" + dtype + b"q\x010" + raw + b"q\x020]("
    again = b"h\x00h\x01h\x02\x86R"
    assert reading(head + again * 3 + b"e.") == ["a" * 1000] * 3
    with pytest.raises(PointCloudFileError, match="creates more bytes from text than the file has"):
        reading(head + again * 100 + b"e.")


@pytest.mark.parametrize("code", [b"0", b"1"])
def test_an_array_may_be_dropped(reading, code):
    array = pickle.dumps(np.zeros((2, 3)), 4)[11:-1]  # after the protocol and the frame
    start = b"\x80\x04K\x07" + (b"(" if code == b"1" else b"")
    assert reading(start + array + code + b".") == 7


def test_very_many_containers_are_refused(reading, monkeypatch):
    monkeypatch.setattr("hf_any3d.data.files.restricted_pickle.MAX_CONTAINERS", 1000)
    assert len(reading(b"\x80\x04](" + b"}" * 900 + b"e.")) == 900
    with pytest.raises(PointCloudFileError, match="more than 1000 containers and arrays"):
        reading(b"\x80\x04](" + b"}" * 1010 + b"e.")
