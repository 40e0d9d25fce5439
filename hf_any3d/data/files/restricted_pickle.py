"""Read pickles of numpy arrays without Python's unpickler, so that files cannot run code."""

import mmap
import os
import struct
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_any3d.data.files.pickle_arrays import Unfinished, call, find_name
from hf_any3d.data.files.source import PointCloudError, PointCloudFileError, ReadLimits, file_errors

T = TypeVar("T")

MAX_OPCODES = 3_000_000
MAX_CONTAINERS = 200_000
MAX_DEPTH = 50
# A pickle may refer to one object many times; with repetitions, it must not be much larger than the file.
MAX_UNFOLDING = 64
_LONGEST_NAME = 200
_HASH_MODULUS = sys.hash_info.modulus
_SHORT = 256  # bytes up to this length are copied, so that they can be keys


def read_pickle(path: str | os.PathLike, *, max_opcodes: int = MAX_OPCODES, limits: ReadLimits | None = None) -> Any:
    """Read a pickle of protocol 1 to 5 with numpy arrays, numbers, text and plain containers.

    Python's own unpickler calls whatever a file names. This one accepts only the names with which numpy 1 and 2 write
    arrays, types and scalars, and builds these itself. Arrays are read-only views of the mapped file, which take
    memory only while they are used.

    Args:
        path: the file.
        max_opcodes: most instructions to run; an array needs about 40.
        limits: limits of the bytes of the file and its arrays, each counted as often as it is referred to; by default
            `ReadLimits.current()`.

    Returns:
        Lists, tuples, dicts, numbers, text, bytes (memoryview if long), None and arrays of numbers or fixed-length
        text.

    Raises:
        PointCloudFileError: no such file, a damaged one, one that refers to anything else or to itself, is nested too
            deep or beyond the limits; names the file and the reason.
    """
    path, limits = Path(path), ReadLimits.current() if limits is None else limits
    if not path.is_file():
        raise PointCloudFileError(f"{path}: no such file")
    if not path.stat().st_size:
        raise PointCloudFileError(f"{path}: the file is empty; expected a pickle")
    with open(path, "rb") as file:
        # Arrays keep the mapping alive.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        with file_errors(path):
            limits.check(decoded=len(mapped))
            value = PickleMachine(memoryview(mapped), max_opcodes).run()
            _check_tree(value, max(1000, MAX_UNFOLDING * len(mapped)), len(mapped), limits)
            return value
    except (MemoryError, RecursionError) as error:
        raise PointCloudFileError(f"{path}: not a readable pickle ({type(error).__name__})") from None


def _check_tree(value: object, allowed: int, stored: int, limits: ReadLimits) -> None:
    """Refuse values that contain themselves, are nested too deep or are huge with all repetitions."""
    sizes: dict[int, tuple[int, int]] = {}  # id of a container -> number of values and bytes of arrays in it
    open_ones: set[int] = set()
    todo: list[tuple[object, bool]] = [(value, False)]
    while todo:
        item, done = todo.pop()
        if id(item) in sizes:
            continue
        children = _children(item)
        if children is None:
            if isinstance(item, np.ndarray):
                sizes[id(item)] = (1, item.nbytes)
            continue
        if done:
            open_ones.discard(id(item))
            if len(sizes) > MAX_CONTAINERS:
                raise PointCloudError(f"more than {MAX_CONTAINERS} containers and arrays; expected at most that many")
            found = [sizes.get(id(child), (1, 0)) for child in children]
            sizes[id(item)] = (1 + sum(count for count, _ in found), sum(size for _, size in found))
            if sizes[id(item)][0] > allowed:
                raise PointCloudError(f"more than {allowed} values with all repetitions; expected fewer repetitions")
            limits.check(decoded=sizes[id(item)][1], stored=stored)
            continue
        if id(item) in open_ones:
            raise PointCloudError("a container contains itself; expected a tree")
        open_ones.add(id(item))
        if len(open_ones) > MAX_DEPTH:
            raise PointCloudError(f"containers are nested more than {MAX_DEPTH} deep")
        # Twice on the stack: the second time, after its children, their sizes are known.
        todo.append((item, True))
        todo.extend((child, False) for child in children)


def _children(item: object) -> Collection | None:
    if isinstance(item, (list, tuple)):
        return item
    if isinstance(item, dict):
        return item.values()  # keys are text and numbers
    return None


class PickleMachine:
    """Run the instructions of a pickle.

    Args:
        data: the whole file.
        max_opcodes: most instructions to run.
    """

    def __init__(self, data: memoryview, max_opcodes: int):
        self._data = data
        self._at = 0
        self._max_opcodes = max_opcodes
        self._stack: list = []
        self._marked: list[list] = []  # stacks set aside by marks
        self._memo: dict[int, object] = {}
        self._made = 0  # length of text and bytes returned by calls

    def run(self) -> object:
        """Return the value of the pickle.

        Raises:
            PointCloudError: an instruction that is not allowed, or a damaged file.
        """
        for _ in range(self._max_opcodes):
            code = self._bytes(1)[0]
            if code == ord("."):
                value = self._pop()
                if self._stack or self._marked:
                    raise PointCloudError("ends with values left over; the file is damaged")
                return value
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PointCloudError(
                    f"byte {self._at - 1} is the instruction {chr(code)!r}, which is refused; allowed are those of "
                    "numpy arrays and plain containers, in protocol 1 to 5"
                )
            instruction(self)
        raise PointCloudError(f"more than {self._max_opcodes} instructions")

    def _bytes(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise PointCloudError(
                f"byte {self._at}: {count} bytes are declared and {len(self._data) - self._at} are left; "
                "the file may be cut off"
            )
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def _number(self, form: str) -> Any:  # an int, for ">d" a float
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self) -> str:
        piece = bytes(self._data[self._at : self._at + _LONGEST_NAME])
        length = piece.find(b"\n")
        if length < 0:
            raise PointCloudError(f"byte {self._at}: a name without an end")
        self._at += length + 1
        return piece[:length].decode("latin1")

    def _pop(self) -> object:
        if not self._stack:
            raise PointCloudError(f"byte {self._at}: uses a value that does not exist; the file is damaged")
        value = self._stack.pop()
        if isinstance(value, Unfinished):
            raise PointCloudError("uses an array before it is complete")
        return value

    def _pop_marked(self) -> list:
        if not self._marked:
            raise PointCloudError(f"byte {self._at}: uses values up to a mark that does not exist; it is damaged")
        values, self._stack = self._stack, self._marked.pop()
        if any(isinstance(value, Unfinished) for value in values):
            raise PointCloudError("uses an array before it is complete")
        return values

    def _top(self, kind: type[T]) -> T:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise PointCloudError(f"byte {self._at}: expected a {kind.__name__} to work on; the file is damaged")
        return self._stack[-1]

    def _pop_last(self, count: int) -> list:
        return [self._pop() for _ in range(count)][::-1]

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _protocol(self) -> None:
        version = self._number("<B")
        if version > 5:
            raise PointCloudError(f"protocol {version}; expected 1 to 5")

    def _long(self) -> None:
        raw = self._bytes(self._number("<B"))
        if len(raw) > 16:
            raise PointCloudError(f"a number of {len(raw)} bytes; expected at most 16")
        self._stack.append(int.from_bytes(raw, "little", signed=True))

    def _int(self) -> None:
        """Push a number written as text; protocol 1 writes True and False so."""
        line = self._line().removesuffix("L")  # as Python 2 wrote long ones
        if line in ("00", "01"):
            self._stack.append(line == "01")
        elif len(line) <= 40 and line.removeprefix("-").isdecimal() and line.isascii():
            self._stack.append(int(line))
        else:
            raise PointCloudError(f"a number written {line[:40]!r}; expected at most 40 digits")

    def _push_text(self, form: str) -> None:
        try:
            self._stack.append(str(self._bytes(self._number(form)), "utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise PointCloudError(f"text that is not UTF-8 ({error.reason})") from None

    def _push_bytes(self, form: str) -> None:
        piece = self._bytes(self._number(form))
        self._stack.append(bytes(piece) if len(piece) <= _SHORT else piece)

    def _push_old_string(self, form: str) -> None:
        count = self._number(form)
        if count < 0:
            raise PointCloudError(f"a string of {count} bytes")
        piece = self._bytes(count)
        self._stack.append(str(piece, "latin1") if len(piece) <= _SHORT else piece)

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _extend(self, values: list) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list) -> None:
        _store(self._top(dict), values)

    def _push_dict(self) -> None:
        values = self._pop_marked()
        self._stack.append({})
        self._set_items(values)

    def _put(self, key: int) -> None:
        if not self._stack:
            raise PointCloudError(f"byte {self._at}: stores a value that does not exist; the file is damaged")
        value = self._stack[-1]
        if isinstance(value, Unfinished):
            value.memo_keys.append(key)
        self._memo[key] = value

    def _get(self, key: int) -> None:
        if key not in self._memo:
            raise PointCloudError(f"byte {self._at}: refers to value {key}, which was not stored; the file is damaged")
        value = self._memo[key]
        if isinstance(value, Unfinished):
            raise PointCloudError("uses an array before it is complete")
        self._stack.append(value)

    def _global(self) -> None:
        module = self._line()
        self._stack.append(find_name(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PointCloudError("refers to something whose name is not text")
        self._stack.append(find_name(module, name))

    def _reduce(self) -> None:
        arguments = self._pop()
        value = call(self._pop(), arguments)
        if isinstance(value, (bytes, str)):  # numpy's scalars of fixed length too
            # A text in the memo can be converted again and again, so all results together are bounded.
            self._made += len(value)
            if self._made > len(self._data):
                raise PointCloudError("creates more bytes from text than the file has")
        self._stack.append(value)

    def _build(self) -> None:
        state = self._pop()
        unfinished = self._top(Unfinished)
        try:
            value = unfinished.finish(state)
        except (TypeError, ValueError, OverflowError) as error:
            raise PointCloudError(str(error)) from None
        self._stack[-1] = value
        # The memo still refers to the unfinished object, which the array replaces.
        for key in unfinished.memo_keys:
            if self._memo[key] is unfinished:
                self._memo[key] = value


def _store(target: dict, values: list) -> None:
    if len(values) % 2:
        raise PointCloudError("a dict with a key that has no value; the file is damaged")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if type(key) is int:
            # Multiples of the modulus all have hash 0, so that each insertion would take as long as all before it.
            if not -_HASH_MODULUS < key < _HASH_MODULUS:
                raise PointCloudError("a dict with a number as key that is too large; expected at most 60 bits")
        elif type(key) not in (str, bytes):
            raise PointCloudError(f"a dict with a key of type {type(key).__name__}; expected text or a whole number")
        target[key] = value


_Machine = Callable[[PickleMachine], object]
_PLAIN: dict[str, _Machine] = {
    "\x80": PickleMachine._protocol,
    "\x95": lambda machine: machine._number("<Q"),  # frames only allow reading ahead
    "(": PickleMachine._mark,
    "0": PickleMachine._pop,
    "1": PickleMachine._pop_marked,
    "N": lambda machine: machine._push(None),
    "\x88": lambda machine: machine._push(True),
    "\x89": lambda machine: machine._push(False),
    "\x8a": PickleMachine._long,
    "I": PickleMachine._int,
    "L": PickleMachine._int,
    "]": lambda machine: machine._push([]),
    "l": lambda machine: machine._push(machine._pop_marked()),
    "a": lambda machine: machine._extend(machine._pop_last(1)),
    "e": lambda machine: machine._extend(machine._pop_marked()),
    "t": lambda machine: machine._push(tuple(machine._pop_marked())),
    "}": lambda machine: machine._push({}),
    "d": PickleMachine._push_dict,
    "s": lambda machine: machine._set_items(machine._pop_last(2)),
    "u": lambda machine: machine._set_items(machine._pop_marked()),
    "\x94": lambda machine: machine._put(len(machine._memo)),
    "c": PickleMachine._global,
    "\x93": PickleMachine._stack_global,
    "R": PickleMachine._reduce,
    "b": PickleMachine._build,
}
_TUPLES = {")": 0, "\x85": 1, "\x86": 2, "\x87": 3}
_NUMBERS = {"J": "<i", "K": "<B", "M": "<H", "G": ">d"}
_TEXTS = {"X": "<I", "\x8c": "<B", "\x8d": "<Q"}
_BYTES = {"B": "<I", "C": "<B", "\x8e": "<Q", "\x96": "<Q"}
_OLD_STRINGS = {"T": "<i", "U": "<B"}
_PUTS = {"q": "<B", "r": "<I"}
_GETS = {"h": "<B", "j": "<I"}


def _instructions() -> dict[int, _Machine]:
    """Return every allowed instruction by its byte, as listed in pickletools."""
    table = dict(_PLAIN)
    table |= {code: lambda m, count=count: m._push(tuple(m._pop_last(count))) for code, count in _TUPLES.items()}
    table |= {code: lambda m, form=form: m._push(m._number(form)) for code, form in _NUMBERS.items()}
    table |= {code: lambda m, form=form: m._push_text(form) for code, form in _TEXTS.items()}
    table |= {code: lambda m, form=form: m._push_bytes(form) for code, form in _BYTES.items()}
    table |= {code: lambda m, form=form: m._push_old_string(form) for code, form in _OLD_STRINGS.items()}
    table |= {code: lambda m, form=form: m._put(m._number(form)) for code, form in _PUTS.items()}
    table |= {code: lambda m, form=form: m._get(m._number(form)) for code, form in _GETS.items()}
    return {ord(code): instruction for code, instruction in table.items()}


_INSTRUCTIONS = _instructions()
