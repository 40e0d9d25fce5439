"""Checkpoints that claim what they do not hold are refused by what is wrong, and `hf-any3d convert` names the file.

The files say what no program writes: another byte order, storages of another size than their record, numbers that are
not there, functions that make arrays. All are small, and limits are set low.
"""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import torch

from hf_any3d.conversions import checkpoints, pickles
from hf_any3d.conversions.pickles import storages_of
from tests.cli.test_cli import run


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stored:
    """A storage by its reference alone."""

    def __init__(self, kind=torch.FloatStorage, key="0", length=4):
        self.reference = ("storage", kind, key, "cpu", length)


class Pickler(pickle._Pickler):
    """In Python, so that references to storages and names are written as they are told."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Stored) else None


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def archive(path, data: bytes, method=zipfile.ZIP_STORED, **others: bytes):
    """Write a zip as `torch.save` does, with a storage of four numbers and members that replace these."""
    members = {"data.pkl": data, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
    members |= {name.replace("__", "/"): content for name, content in others.items()}
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            if content is not None:
                file.writestr(f"archive/{name}", content)


def tensor(storage=None, offset=0, size=(4,), stride=(1,), *more):
    return Call(torch._utils._rebuild_tensor_v2, storage or Stored(), offset, size, stride, False, {}, *more)


def state(value) -> bytes:
    return pickled({"module": {"point_encoder.cls_token": value}})


def tuples(depth) -> bytes:
    """A dictionary whose key is a tuple in a tuple."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


def doubled(depth) -> bytes:
    """A value of tuples that share their parts."""
    rows = b"".join(b"q" + bytes([row]) + b"h" + bytes([row]) + b"\x86" for row in range(depth))
    return b"\x80\x02}K\x01" + b")" + rows + b"s."


FOUR = struct.pack("<q", 4) + bytes(16)


def first_format(content: bytes, keys=("0",), stored=FOUR) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join(map(pickled, head)) + content + pickled(list(keys)) + stored


class InFirstFormat(Stored):
    def __init__(self, length=4, view=None):
        super().__init__(length=length)
        self.reference = (*self.reference, view)


def two_of_a_name(path):
    archive(path, state(tensor()))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(range(16)))


def claims_more(path):
    """A zip whose directory says that a member of sixteen bytes has a megabyte."""
    archive(path, state(tensor()))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    struct.pack_into("<LL", data, entry + 20, 2**20, 2**20)
    path.write_bytes(data)


def tar(path):
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 3
            file.addfile(info, io.BytesIO(b"\x80\x02."))


def called(function, *arguments) -> bytes:
    return state(Call(function, *arguments))


_encode = __import__("_codecs").encode
_Q = (torch.per_tensor_affine, 0.1, 0)
MEMBERS = {
    "storage of less than its record": (state(tensor(Stored(length=2), size=(2,))), "has 16 bytes; it needs 8"),
    "negative storage": (state(tensor(Stored(length=-4))), "its storage '0' has the type"),
    "storage of no record": (state(tensor(Stored(key="7"))), "'7' has 0 bytes; it needs 16"),
    "storage in a parent": (state(tensor(Stored(key="../version"))), "'../version' has 0 bytes"),
    "storage of no type": (state(tensor(Stored(kind=torch.Size))), "has the type 'torch Size'"),
    "storage of two types": (state([tensor(), tensor(Stored(torch.DoubleStorage))]), "'0' has two sizes"),
    "number as storage": (called(torch._utils._rebuild_tensor_v2, 7, 0, (4,), (1,), 0, {}), ""),
    "size beyond storage": (state(tensor(size=(100,))), ""),
    "negative size": (state(tensor(size=(-4,))), ""),
    "negative stride": (state(tensor(offset=3, stride=(-1,))), ""),
    "negative offset": (state(tensor(offset=-4)), ""),
    "repeated number": (state(tensor(size=(100,), stride=(0,))), "claims 400 bytes, of which 16 are stored"),
    "many names": (
        pickled({"module": dict.fromkeys(map(str, range(100)), tensor())}),
        "its tensors claim 1,600 bytes, of which 16 are stored",
    ),
    "nested key": (tuples(30), "it nests"),
    "nested tuples": (b"\x80\x02" + b"(" * 30 + b"t" * 30 + b".", "it nests"),
    "dictionary in itself": (b"\x80\x02}q\x00X\x06\x00\x00\x00moduleh\x00s.", ""),
    "long pickle": (pickled({"text": "a" * 5000}), "expected one, of at most 4,000 bytes"),
    "no pickle": (None, "it has 0 data.pkl"),
    "empty pickle": (b"", ""),
    "text that is cut off": (b"\x80\x02X\xff\x00\x00\x00a.", ""),
    "big bytes": (called(bytearray, 4), "looks up '__builtin__.bytearray'"),
    "encoding": (called(_encode, "a", "hex"), "it encodes text otherwise than as latin1"),
    "tensor of a shape": (called(torch.Tensor, 2, 3), "looks up 'torch.Tensor'"),
    "storage class": (called(torch.UntypedStorage, 4), "looks up 'torch.storage.UntypedStorage'"),
    "long number of numpy": (
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x04\x00\x00\x00V100\x85R\x85R.",
        "it makes numbers of type 'V100'",
    ),
    "objects of numpy": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00O\x87R.",
        "looks up 'numpy.core.multiarray._reconstruct'",
    ),
    "sparse": (
        called(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (tensor(), tensor(), (4, 4))),
        "looks up 'torch._utils._rebuild_sparse_tensor'",
    ),
    "quantized": (
        called(torch._utils._rebuild_qtensor, Stored(torch.QInt8Storage), 0, (4,), (1,), _Q, False, {}),
        "looks up 'torch._utils._rebuild_qtensor'",
    ),
    "meta": (
        called(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (4,), (1,), False),
        "looks up 'torch._utils._rebuild_meta_tensor_no_storage'",
    ),
    "code": (called(print, "the file ran code"), "looks up '__builtin__.print'"),
}
"""What stands in the place of a pickle in a checkpoint of one tensor of four numbers, and what is said of it."""
FILES = {
    **{
        name: (lambda path, content=content: archive(path, content), words)
        for name, (content, words) in MEMBERS.items()
    },
    "no endian": (lambda path: archive(path, state(tensor()), byteorder=b"\xff\xfe"), ""),
    "two of a name": (two_of_a_name, "it holds two members of one name"),
    "claims more": (claims_more, "bytes claim to unpack to 1,048"),
    "unpacks to more": (
        lambda path: archive(path, state(tensor()), zipfile.ZIP_DEFLATED, data__1=bytes(50_000)),
        "bytes claim to unpack to 50,",
    ),
    "cut": (lambda path: (archive(path, state(tensor())), path.write_bytes(path.read_bytes()[:-30])), ""),
    "first format beyond": (
        lambda path: path.write_bytes(first_format(state(tensor(InFirstFormat(8), size=(8,))))),
        "its tensors need 40 bytes, of which it holds 24",
    ),
    "first format shorter": (
        lambda path: path.write_bytes(
            first_format(state(tensor(InFirstFormat())), stored=struct.pack("<q", -4) + bytes(16))
        ),
        "",
    ),
    "first format view": (
        lambda path: path.write_bytes(first_format(state(tensor(InFirstFormat(view=("1", 0, 2)))))),
        "its storage '0' has the type",
    ),
    "first format cut": (lambda path: path.write_bytes(first_format(state(tensor(InFirstFormat())))[:-9]), "need 24"),
    "first format nested": (lambda path: path.write_bytes(first_format(tuples(30))), "it nests"),
    "tar": (tar, "not a PyTorch checkpoint"),
    "nothing": (lambda path: path.write_bytes(b""), "not a PyTorch checkpoint"),
    "other bytes": (lambda path: path.write_bytes(bytes(range(256)) * 100), "not a PyTorch checkpoint"),
}


@pytest.fixture
def low_limits(monkeypatch):
    for name, limit in (("_ALWAYS_READ", 1000), ("_LARGEST_PICKLE", 4000)):
        monkeypatch.setattr(checkpoints, name, limit)
    monkeypatch.setattr(pickles, "_DEEPEST", 20)


@pytest.mark.usefixtures("low_limits", "libraries_as_they_were")
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_checkpoint_is_refused_in_one_line(name, tmp_path):
    write, words = FILES[name]
    write(tmp_path / "a.pth")
    code, out, err = run("convert", tmp_path / "a.pth", "--output", tmp_path / "out")
    assert code in (1, 2) and out == "" and not (tmp_path / "out").exists()
    assert len(err.splitlines()) == 1 and "a.pth" in err and words in err and len(err) < 2000, err


def test_values_are_refused_from_a_depth_and_a_number_of_parts_on(monkeypatch):
    monkeypatch.setattr(pickles, "_DEEPEST", 20)
    monkeypatch.setattr(pickles, "_MOST_PARTS", 60)
    for kept, refused in ((tuples(15), tuples(25)), (doubled(4), doubled(6))):
        assert storages_of(kept) == []
        with pytest.raises(ValueError, match="it nests"):
            storages_of(refused)


def test_numbers_of_another_byte_order_are_not_mapped(tmp_path, monkeypatch):
    archive(tmp_path / "a.pth", state(tensor()))
    assert checkpoints._check_zip(tmp_path / "a.pth")
    # As if this machine had another one.
    monkeypatch.setattr(checkpoints, "sys", SimpleNamespace(byteorder="big"))
    assert not checkpoints._check_zip(tmp_path / "a.pth")


def test_a_storage_that_no_list_names_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(first_format(state(tensor(InFirstFormat()))))
    # As if the list was empty.
    monkeypatch.setattr(checkpoints, "texts_of", lambda _: set())
    with pytest.raises(ValueError, match="does not hold the numbers of its tensor '0'"):
        checkpoints.read_checkpoint(tmp_path / "a.pth")


def test_what_is_written_here_is_what_torch_reads(tmp_path):
    """The files above are refused for what is changed in them."""
    archive(tmp_path / "a.pth", state(tensor()))
    (tmp_path / "b.pth").write_bytes(first_format(state(tensor(InFirstFormat()))))
    for file in ("a.pth", "b.pth"):
        read = torch.load(tmp_path / file, weights_only=True)
        assert torch.equal(read["module"]["point_encoder.cls_token"], torch.zeros(4))
