"""Read pickles of numpy arrays and plain containers, as some published data sets are stored."""

import codecs
import os
import pickle
from typing import Any

import numpy as np

from hf_any3d.data.files.source import PointCloudError, ReadLimits, file_errors
from hf_any3d.data.files.text_numbers import listed

# The functions with which numpy pickles; their modules have other names in numpy 1 and 2.
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float32(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    # Protocol 2 writes bytes as an encoded text, or as a call without arguments if there are none.
    "_codecs.encode": codecs.encode,
    "__builtin__.bytes": bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        try:
            return _ALLOWED[full.replace("numpy._core.", "numpy.core.", 1)]
        except KeyError:
            raise PointCloudError(
                f"refers to {listed([full])}, which is refused; allowed are numpy arrays and plain containers"
            ) from None


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle with numpy arrays, numbers, text and plain containers; any other name in it is refused."""
    with file_errors(path, "pickle"), open(path, "rb") as file:
        ReadLimits.current().check(decoded=os.path.getsize(path))
        return _Unpickler(file, encoding="latin1").load()  # how Python 2 wrote bytes
