"""Hostile checkpoints end `hf-any3d convert` by one line that names the file, not by a signal, and in little memory.

The files say what no program writes: another byte order, storages beyond their record, numbers that are not there,
functions that make arrays of any size, tuples in tuples.

None of them harms who gives it to `torch.load` itself (2.13.0): torch reads it, or raises an error. Where more of the
same would end the process or never end, a comment says so.
"""

import io
import os
import pickle
import resource
import struct
import sys
import tarfile
import traceback
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest
import torch

from hf_any3d.cli import main
from hf_any3d.conversions.pickles import storages_of
from tests.forks import results_of


def convert_each(folder: Path) -> dict[str, int]:
    """Convert each file in a child, the next ones in another where it dies, and return statuses as of `os.waitpid`."""
    output = f"{folder}/out"
    torch.save({"weight": torch.zeros(3)}, output + ".pth")
    convert(output + ".pth", output, log=output + ".log")  # once before, so that children import nothing
    files, statuses = sorted((folder / "files").iterdir()), {}
    while left := files[len(statuses) :]:
        told = Path(f"{output}.statuses")
        told.write_text("")
        child = os.fork()
        if child == 0:
            try:
                with told.open("a", buffering=1) as file:
                    convert_limited(left, output, file)
            finally:
                os._exit(0)
        ending = os.waitpid(child, 0)[1]
        found = [int(line) for line in told.read_text().splitlines()]
        # The child says nothing of the file that ended it.
        found += [ending or -1] if len(found) < len(left) else []
        statuses |= {file.name: status for file, status in zip(left, found, strict=False)}
    return statuses


def convert_limited(files: list[Path], output: str, told: TextIO) -> None:
    """Convert files in this process, which may take two gigabytes more, and tell their statuses."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for file in files:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 60, resource.RLIM_INFINITY))
        told.write(f"{convert(str(file), output, log=f'{output}.{file.name}') << 8}\n")


def convert(file: str, output: str, log: str) -> int:
    """Run `hf-any3d convert` with its output in a file, and return its status."""
    sys.argv = ["hf-any3d", "convert", file, "--output", output]
    with open(log, "w") as told, redirect_stdout(told), redirect_stderr(told):
        try:
            main()
        except SystemExit as ending:
            return ending.code or 0
        except BaseException:
            traceback.print_exc()
            return 3
    return 0


WEIGHTS = {"module": {"point_encoder.cls_token": torch.zeros(1, 1, 4), "point_encoder.norm.weight": torch.ones(4)}}


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


def nested(depth, make=lambda inner: (inner,)):
    value = ()
    for _ in range(depth):
        value = make(value)
    return value


def tuples(depth) -> bytes:
    """A dictionary whose key is a tuple in a tuple and so on: it is hashed by recursion.

    torch reads a thousand. Some hundred thousand would overflow the stack and end the process without an error.
    """
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


def doubled(depth) -> bytes:
    """A value of tuples that hold the one before twice.

    As a value it is read at once. As a key it would be hashed part by part, twice as many for each row, without end.
    """
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
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(range(16)))


def claims_more(path):
    """A zip whose directory says that a member has 2^40 bytes."""
    archive(path, state(tensor()))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    extra = struct.pack("<HHQQ", 1, 16, 2**40, 2**40)
    name = struct.unpack_from("<H", data, entry + 28)[0]
    struct.pack_into("<LL", data, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", data, entry + 30, len(extra))
    data[entry + 46 + name : entry + 46 + name] = extra
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<L", data, end + 12, struct.unpack_from("<L", data, end + 12)[0] + len(extra))
    path.write_bytes(data)


def tar(path):
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 3
            file.addfile(info, io.BytesIO(b"\x80\x02."))


HUGE = 10**12
# Bytes that no machine has, so that they are refused also where memory is promised and not counted.
BEYOND_ADDRESSES = 2**62
FILES = {
    # torch swaps the bytes of these four numbers rightly. Of a storage that claims more than its record it would swap
    # what lies behind, and end the process.
    "big_endian": lambda path: archive(path, state(tensor()), byteorder=b"big"),
    "no_endian": lambda path: archive(path, state(tensor()), byteorder=b"\xff\xfe"),
    "storage_beyond_record": lambda path: archive(path, state(tensor(Stored(length=HUGE), size=(HUGE,)))),
    "storage_into_neighbor": lambda path: archive(path, state(tensor(Stored(length=8), size=(8,)))),
    "negative_storage": lambda path: archive(path, state(tensor(Stored(length=-4)))),
    "storage_of_no_record": lambda path: archive(path, state(tensor(Stored(key="7")))),
    "storage_in_a_parent": lambda path: archive(path, state(tensor(Stored(key="../version")))),
    "storage_of_no_type": lambda path: archive(path, state(tensor(Stored(kind=torch.Size)))),
    "storage_of_two_types": lambda path: archive(path, state([tensor(), tensor(Stored(torch.DoubleStorage))])),
    "number_as_storage": lambda path: archive(
        path, state(Call(torch._utils._rebuild_tensor_v2, 7, 0, (4,), (1,), 0, {}))
    ),
    "size_beyond_storage": lambda path: archive(path, state(tensor(size=(HUGE,)))),
    "size_that_overflows": lambda path: archive(path, state(tensor(size=(2**31, 2**31, 2**31), stride=(1, 1, 1)))),
    "negative_size": lambda path: archive(path, state(tensor(size=(-4,)))),
    "negative_stride": lambda path: archive(path, state(tensor(offset=3, stride=(-1,)))),
    "negative_offset": lambda path: archive(path, state(tensor(offset=-(2**40)))),
    "repeated_number": lambda path: archive(path, state(tensor(size=(HUGE,), stride=(0,)))),
    "overlapping_views": lambda path: archive(path, state(tensor(size=(2**31, 2**31), stride=(0, 0)))),
    "many_names": lambda path: archive(
        path,
        pickled({"module": dict.fromkeys(map(str, range(1000)), tensor(Stored(length=10**6), size=(10**6,)))}),
        data__0=bytes(4 * 10**6),
    ),
    "nested_key": lambda path: archive(path, tuples(1000)),
    "doubled_value": lambda path: archive(path, doubled(30)),
    "nested_lists": lambda path: archive(path, b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b"."),
    "list_in_itself": lambda path: archive(path, b"\x80\x02}q\x00X\x06\x00\x00\x00moduleh\x00s."),
    "two_of_a_name": two_of_a_name,
    "zip64_lies": claims_more,
    "bomb": lambda path: archive(path, state(tensor()), zipfile.ZIP_DEFLATED, data__1=bytes(10**8)),
    "bomb_of_a_pickle": lambda path: archive(path, b"\x80\x02" + b"]0" * 4 * 10**7, zipfile.ZIP_DEFLATED),
    "cut": lambda path: (archive(path, state(tensor())), path.write_bytes(path.read_bytes()[:-30])),
    "no_pickle": lambda path: archive(path, None),
    "empty_pickle": lambda path: archive(path, b""),
    "text_of_four_gigabytes": lambda path: archive(path, b"\x80\x02X\xff\xff\xff\xffa."),
    "big_bytes": lambda path: archive(path, state(Call(bytearray, BEYOND_ADDRESSES))),
    "encodings": lambda path: archive(
        path, state(nested(60, lambda text: Call(__import__("_codecs").encode, text, "hex")))
    ),
    "tensor_of_a_shape": lambda path: archive(path, state(Call(torch.Tensor, 2**30, 2**30))),
    "storage_class": lambda path: archive(path, state(Call(torch.UntypedStorage, BEYOND_ADDRESSES))),
    "numpy_void": lambda path: archive(
        path, b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\x00\x00\x00V2000000000\x85R\x85R."
    ),
    "numpy_objects": lambda path: archive(
        path, b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00O\x87R."
    ),
    "sparse": lambda path: archive(
        path, state(Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (tensor(), tensor(), (HUGE, HUGE))))
    ),
    "quantized": lambda path: archive(
        path,
        state(
            Call(
                torch._utils._rebuild_qtensor,
                Stored(torch.QInt8Storage),
                0,
                (HUGE,),
                (1,),
                (torch.per_tensor_affine, 0.1, 0),
                False,
                {},
            )
        ),
    ),
    "meta": lambda path: archive(
        path, state(Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (HUGE,), (1,), False))
    ),
    "code": lambda path: archive(path, state(Call(exec, "raise SystemExit(7)"))),
    "first_format_beyond": lambda path: path.write_bytes(
        first_format(state(tensor(InFirstFormat(2**60), size=(2**60,))))
    ),
    "first_format_unlisted": lambda path: path.write_bytes(first_format(state(tensor(InFirstFormat())), keys=())),
    "first_format_shorter": lambda path: path.write_bytes(
        first_format(state(tensor(InFirstFormat())), stored=struct.pack("<q", -4) + bytes(16))
    ),
    "first_format_view": lambda path: path.write_bytes(
        first_format(state(tensor(InFirstFormat(view=("1", -8, 2**40)))))
    ),
    "first_format_cut": lambda path: path.write_bytes(first_format(state(tensor(InFirstFormat())))[:-9]),
    "first_format_nested": lambda path: path.write_bytes(first_format(tuples(1000))),
    "tar": tar,
    "nothing": lambda path: path.write_bytes(b""),
    "other_bytes": lambda path: path.write_bytes(bytes(range(256)) * 100),
}


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """For each file the status of the process that converts it, and what it printed."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    for name, write in FILES.items():
        write(folder / "files" / f"{name}.pth")
    (statuses,) = results_of(partial(convert_each, folder))
    assert not (folder / "out").exists()
    return {name: (statuses[f"{name}.pth"], Path(f"{folder}/out.{name}.pth").read_text()) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_checkpoint_is_refused_in_one_line(endings, name):
    status, printed = endings[name]
    assert status in (256, 512), (status, printed)
    assert len(printed.splitlines()) == 1 and f"{name}.pth" in printed and len(printed) < 2000, printed


def test_values_are_refused_from_a_depth_and_a_number_of_parts_on():
    # The two limits themselves, since the files above would also be refused for having no weights.
    for kept, refused in ((tuples(150), tuples(250)), (doubled(20), doubled(30))):
        assert storages_of(kept) == []
        with pytest.raises(ValueError):
            storages_of(refused)


def test_what_is_written_here_is_what_torch_reads(tmp_path):
    """The files above are refused for what is changed in them."""
    archive(tmp_path / "a.pth", state(tensor()))
    (tmp_path / "b.pth").write_bytes(first_format(state(tensor(InFirstFormat()))))
    for file in ("a.pth", "b.pth"):
        read = torch.load(tmp_path / file, weights_only=True)
        assert torch.equal(read["module"]["point_encoder.cls_token"], torch.zeros(4))
