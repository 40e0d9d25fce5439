"""Look through the pickles of a checkpoint, running nothing, before torch's reader follows them.

`torch.load(weights_only=True)` runs no code, but trusts numbers. Here storages are listed with the size that tensors
take them to have, values have a depth and a number of parts, and only names that weights need may be looked up.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pickletools import OpcodeInfo, markobject
from typing import Any, BinaryIO

ALLOWED = {
    "__builtin__ complex",
    "__builtin__ getattr",  # a stand-in, see `conversions.checkpoints`
    "__builtin__ set",
    "_codecs encode",
    "argparse Namespace",
    "builtins complex",
    "builtins getattr",
    "builtins set",
    "collections Counter",
    "collections OrderedDict",
    "numpy dtype",
    "numpy._core.multiarray scalar",
    "numpy.core.multiarray scalar",
    "pointcept.utils.scheduler OneCycleLR",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
    "torch.optim.lr_scheduler OneCycleLR",
}
"""Names that checkpoints of weights look up, beside storages and dtypes of `ITEM_SIZES`."""
ITEM_SIZES = {
    **dict.fromkeys(("Bool", "Byte", "Char"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    "ComplexDouble": 16,
}
"""Bytes of a number of each kind of storage."""
_DTYPES = {
    "bfloat16",
    "bool",
    "complex64",
    "complex128",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
}
# Weights are at a depth of about ten.
_DEEPEST = 200
# Parts that values share count as often as they occur.
_MOST_PARTS = 50_000_000


class NotPlainError(ValueError):
    """A pickle looks up something that tensors and plain values do not need."""


@dataclass(frozen=True)
class Storage:
    """Storage that a pickle refers to: its key, and how many bytes its tensors take it to have."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class _Value:
    """Entry of the stack: plain values, tuples of them and names that are looked up are known, others are None."""

    known: object = None
    depth: int = 0
    parts: int = 1


@dataclass(frozen=True)
class _Made:
    """Result of a call of a name that was looked up."""

    by: object


_MARK = _Value("mark")


def storages_of(pickle: bytes | BinaryIO) -> list[Storage]:
    """Return the storages that one pickle refers to, each once; a file is read up to the end of the pickle.

    Raises:
        ValueError: If it looks up what weights do not need, nests values too deeply, or is none.
    """
    # The machine that unpickles, followed without doing what it says.
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    found: dict[str, Storage] = {}
    for operation, argument, _ in pickletools.genops(pickle):
        name = operation.name
        place: Any = argument
        # The memo holds values for repeated use: shared parts occur once in a file, but count each time.
        if name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[place] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[place])
        elif name == "GLOBAL":
            # A name is refused where it is looked up, whether or not it is called later.
            stack.append(_Value(_looked_up(str(argument))))
        else:
            taken = list(_taken(stack, operation.stack_before))
            if name == "BINPERSID":
                storage = _storage(taken[0].known)
                # Of two sizes of one storage, torch would take one on trust.
                if found.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"storage {storage.key!r:.50} has two sizes")
            elif name in ("REDUCE", "BUILD"):
                _check_call(taken[0].known, taken[1].known)
            stack += _pushed(operation, argument, taken)
    return list(found.values())


def texts_of(pickle: bytes | BinaryIO) -> set[str]:
    """Return the texts in one pickle, such as the list of the storages that follow it."""
    return {argument for _, argument, _ in pickletools.genops(pickle) if isinstance(argument, str)}


def _looked_up(name: str) -> str:
    """Check a name that a pickle looks up, as "module name"."""
    module, _, attribute = name.partition(" ")
    # Storages are classes named after their kind, such as FloatStorage.
    is_storage = module == "torch" and attribute.removesuffix("Storage") in ITEM_SIZES
    is_dtype = module == "torch" and attribute in _DTYPES
    if name not in ALLOWED and not is_storage and not is_dtype:
        raise NotPlainError(f"it looks up {name.replace(' ', '.')!r:.100}")
    return name


def _taken(stack: list[_Value], before: list) -> Iterator[_Value]:
    """Take what an operation takes from the stack, in the order in which it was put there."""
    taken = []
    if markobject in before:
        # Everything back to the mark, which an operation of unknown length leaves below its arguments.
        while (value := stack.pop()) is not _MARK:
            taken.append(value)
        before = before[: before.index(markobject)]
    taken += [stack.pop() for _ in before]
    return reversed(taken)


def _pushed(operation: OpcodeInfo, argument: object, taken: list[_Value]) -> Iterator[_Value]:
    """Yield what an operation leaves on the stack."""
    if operation.name == "MARK":
        yield _MARK
    elif operation.stack_after:
        known: object = argument
        if operation.name.startswith("TUPLE") or operation.name == "EMPTY_TUPLE":
            known = tuple(value.known for value in taken)
        elif operation.name in ("REDUCE", "BUILD"):
            known = _Made(taken[0].known)
        elif taken:
            known = None
        # Counted without building them: shared parts count as often as they occur, as whoever hashes or prints them
        # would see them.
        depth = max((value.depth for value in taken), default=0) + 1
        parts = sum(value.parts for value in taken) + 1
        if depth > _DEEPEST or parts > _MOST_PARTS:
            raise ValueError(f"it nests {parts:,} values {depth} deep; expected at most {_DEEPEST}")
        yield _Value(known, depth, parts)


def _storage(reference: object) -> Storage:
    """Read a reference to a storage: the word "storage", its type, key, device and length, and None at first."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] not in ("storage", b"storage"):
        raise ValueError("it refers to something that is no storage")
    _, kind, key, _, length, *view = reference
    item = ITEM_SIZES.get(str(kind).removeprefix("torch ").removesuffix("Storage"))
    if (
        item is None
        or not isinstance(key, str)
        or not isinstance(length, int)
        or length < 0
        or view not in ([], [None])
    ):
        raise ValueError(f"its storage {key!r:.50} has the type {kind!r:.50} and length {length!r:.50}")
    return Storage(key, item * length)


def _check_call(function: object, arguments: object) -> None:
    """Check the arguments of what can make something large out of few bytes."""
    # Arguments that are unknown are refused below, like wrong ones.
    values = arguments if isinstance(arguments, tuple) and arguments else (None,)
    # The only encoding that Python itself writes; others, such as hex, make texts longer.
    if function == "_codecs encode" and values[1:] != ("latin1",):
        raise ValueError("it encodes text otherwise than as latin1")
    # Numbers have short names, such as "f4".
    is_kind = isinstance(values[0], str) and len(values[0]) <= 3
    if function == "numpy dtype" and not is_kind:
        raise ValueError(f"it makes numbers of type {values[0]!r:.50}")
    if function == _Made("numpy dtype") and values[1:2] not in (("<",), (">",), ("|",), ("=",)):
        raise ValueError("it changes a type of numbers")
    if function == _Made("numpy dtype") and values[2:] != (None, None, None, -1, -1, 0):
        raise ValueError("it makes numbers of several fields")
