"""Read pickles of numpy arrays and plain containers, as some published data sets are stored.

What a pickle may call are functions of this module, which look at what they are given before numpy does.
"""

import math
import os
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from hf_any3d.data.files.source import PointCloudError, ReadLimits, file_errors
from hf_any3d.data.files.text_numbers import listed

_LONGEST_CODE = 8  # of a dtype, such as "<U12"
_BYTE_ORDERS = ("<", ">", "|", "=")


def _dtype(code: str | bytes, _align: bool = False, _copy: bool = False) -> np.dtype:
    """Return a dtype of its own: the state that follows in the pickle would otherwise change numpy's."""
    text = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(text, str) or len(text) > _LONGEST_CODE:
        raise PointCloudError(f"a numpy.dtype of {type(code).__name__}; expected a short text")
    return np.dtype(text, False, True)


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray:
    """Return an empty array; the pickle sets its content afterwards."""
    return np.empty(0, np.int8)


def _scalar(dtype: np.dtype, data: bytes | str) -> Any:
    """Return a number of numpy."""
    content = data.encode("latin1") if isinstance(data, str) else data
    _check_content(content, dtype, 1)
    return np.frombuffer(content, dtype)[0]


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Return an array of protocol 5."""
    # The shape is compared with the content before numpy makes an array of both.
    _check_content(buffer, dtype, math.prod(shape))
    return np.frombuffer(bytearray(buffer), dtype).reshape(shape, order="F" if order == "F" else "C")


def _check_content(content: Any, dtype: Any, count: int) -> None:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiubcSU":
        raise PointCloudError(f"an array of {dtype}; expected numbers or texts")
    if not isinstance(content, (bytes, bytearray)) or count < 0 or len(content) != count * dtype.itemsize:
        raise PointCloudError("an array with more or less content than its shape says")


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    # numpy pickles bytes as text in this encoding, and names no other one.
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


# The functions with which numpy pickles; their modules have other names in numpy 1 and 2.
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": "numpy.ndarray",  # an argument of the next but one, never called
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    # Protocol 2 writes bytes as an encoded text, or as a call without arguments if there are none.
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}


# That in C sets states without asking; types know only that one.
_PythonUnpickler: Any = vars(pickle)["_Unpickler"]


class _Unpickler(_PythonUnpickler):
    dispatch: ClassVar[dict[int, Callable]] = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        # By its full name; numpy 2 has an underscore before "core".
        full = f"{module}.{name}"
        try:
            return _ALLOWED[full.replace("numpy._core.", "numpy.core.", 1)]
        except KeyError:
            raise PointCloudError(
                f"refers to {listed([full])}, which is refused; allowed are numpy arrays and plain containers"
            ) from None

    def load_build(self) -> None:
        """Set the state of an array or a dtype; nothing else in such a pickle has one."""
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, np.ndarray):
            _, shape, dtype, is_fortran, data = state
            # Python 2 wrote bytes as text.
            content = data.encode("latin1") if isinstance(data, str) else data
            _check_content(content, dtype, math.prod(shape))
            checked = (1, tuple(map(int, shape)), dtype, bool(is_fortran), bytes(content))
        elif isinstance(value, np.dtype):
            version, order, *rest = state
            if version not in (3, 4) or order not in _BYTE_ORDERS or rest[:3] != [None, None, None]:
                raise PointCloudError("a numpy.dtype with fields, or of an unknown form")
            if not all(isinstance(number, int) for number in rest[3:6]) or len(rest) < 6:
                raise PointCloudError("a numpy.dtype with a damaged state")
            # Version 3 has no metadata, whose objects nobody has looked at.
            checked = (3, order, None, None, None, *rest[3:6])
        else:
            raise PointCloudError(f"sets the state of {type(value).__name__}; expected numpy arrays alone")
        self.stack[-1].__setstate__(checked)

    dispatch[pickle.BUILD[0]] = load_build


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle with numpy arrays, numbers, text and plain containers; any other name in it is refused."""
    with file_errors(path, "pickle"), open(path, "rb") as file:
        ReadLimits.current().check(decoded=os.path.getsize(path))
        return _Unpickler(file, encoding="latin1").load()  # how Python 2 wrote bytes
