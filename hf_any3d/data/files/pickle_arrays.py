"""Rebuild numpy's arrays, types and scalars from pickles without calling anything that the file names."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from hf_any3d.data.files.source import PointCloudError
from hf_any3d.data.files.text_numbers import listed

# Not text of length 0: numpy makes one character of it, which the file does not have.
_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU][1-9]\d{0,3})")
_LAST_CHARACTER = 0x10FFFF
_MOST_EMPTY_ROWS = 1 << 20


class Name(Enum):
    """Names that a pickle may use: stubs for numpy's functions, not the functions."""

    ARRAY = "numpy.ndarray"
    TYPE = "numpy.dtype"
    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    SCALAR = "numpy.core.multiarray.scalar"
    FROM_BUFFER = "numpy.core.numeric._frombuffer"
    ENCODE = "_codecs.encode"
    EMPTY = "__builtin__.bytes"


def find_name(module: str, name: str) -> Name:
    """Look up an allowed name; numpy 2 calls the package `numpy._core`.

    Raises:
        PointCloudError: any other name.
    """
    full = f"{module}.{name}"
    if full.startswith("numpy._core."):
        full = "numpy.core." + full.removeprefix("numpy._core.")
    try:
        return Name(full)
    except ValueError:
        raise PointCloudError(
            f"refers to {listed([f'{module}.{name}'])}, which is refused; "
            "allowed are numpy arrays and plain containers"
        ) from None


@dataclass
class Unfinished:
    """An array or type that has been created but not yet got its state.

    Attributes:
        finish: builds the value from the state.
        memo_keys: its keys in the memo.
    """

    finish: Callable[[object], object]
    memo_keys: list[int] = field(default_factory=list)


def call(name: object, arguments: object) -> object:
    """Return what numpy's function `name` would return for `arguments`.

    Raises:
        PointCloudError: not a function of numpy, or arguments that numpy does not write.
    """
    if not isinstance(name, Name) or not isinstance(arguments, tuple):
        raise PointCloudError("calls something other than a function of numpy")
    made = _CALLS.get(name)
    if made is None:
        raise PointCloudError(f"calls {name.value}, which numpy does not do")
    try:
        return made(*arguments)
    except PointCloudError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise PointCloudError(f"{name.value} with other arguments than numpy writes ({str(error)[:80]})") from None


def _reconstruct(kind: object, shape: object, code: object) -> Unfinished:
    if kind is not Name.ARRAY or shape != (0,):
        raise PointCloudError("an array of another class; expected numpy.ndarray")
    return Unfinished(_finish_array)


def _finish_array(state: object) -> np.ndarray:
    if not isinstance(state, tuple) or len(state) != 5:
        raise PointCloudError("the state of an array is not what numpy writes")
    _, shape, dtype, by_columns, raw = state
    return _array(raw, dtype, shape, "F" if by_columns else "C")


def _array(raw: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(dtype, np.dtype):
        raise PointCloudError("an array without a numpy type")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise PointCloudError("an array with a malformed shape")
    if order not in ("C", "F"):
        raise PointCloudError(f"an array in order {str(order)[:10]!r}; expected 'C' or 'F'")
    data = _bytes(raw)
    if not dtype.itemsize:
        raise PointCloudError(f"an array of type {dtype}, whose values have no bytes; expected numbers or text")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        raise PointCloudError(f"an array of shape {shape} and type {dtype} needs {needed} bytes and has {len(data)}")
    if not needed:
        # Empty slices are plausible, millions of empty rows are not.
        if max(shape) > _MOST_EMPTY_ROWS:
            raise PointCloudError(f"an array of shape {shape} without numbers; expected at least a row")
        return np.empty(shape, dtype)
    array = np.frombuffer(data, dtype)
    if dtype.kind == "U" and array.view(dtype.byteorder.replace("|", "=") + "u4").max() > _LAST_CHARACTER:
        raise PointCloudError(f"an array of type {dtype} has numbers that are not characters")
    return array.reshape(shape, order=order)


def _type(code: object, align: object = False, copy: object = True) -> Unfinished:
    code = _text(code)
    if not _TYPE.fullmatch(code):
        raise PointCloudError(f"an array of type {code[:20]!r}; expected numbers or text of a fixed length")

    def finish(state: object) -> np.dtype:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise PointCloudError(f"the state of type {code!r} is not what numpy writes of numbers")
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise PointCloudError(f"type {code!r} in byte order {order[:10]!r}; expected < or >")
        return np.dtype(code).newbyteorder(order)

    return Unfinished(finish)


def _scalar(dtype: object, raw: object) -> object:
    return _array(raw, dtype, (), "C")[()]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # Protocol 2 writes bytes as text.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PointCloudError("encodes text that Python does not write for bytes")
    return text.encode("latin1")


_CALLS: dict[Name, Callable[..., object]] = {
    Name.RECONSTRUCT: _reconstruct,
    Name.TYPE: _type,
    Name.SCALAR: _scalar,
    Name.FROM_BUFFER: _array,
    Name.ENCODE: _encode,
    Name.EMPTY: lambda: b"",  # how protocol 2 writes no bytes
}


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise PointCloudError("a type whose name is not text")
    return value


def _bytes(value: object) -> bytes | memoryview:
    # Python 2 wrote bytes as strings, which arrive here as Latin-1 text.
    if isinstance(value, str) and len(value) <= 256:
        return value.encode("latin1")
    if not isinstance(value, (bytes, memoryview)):
        raise PointCloudError("an array whose numbers are not bytes; arrays of Python objects are refused")
    return value
