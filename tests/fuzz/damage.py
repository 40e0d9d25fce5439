"""Damage files reproducibly, and bound the time and memory of reading them.

`HF_ANY3D_MUTATIONS` is the number of inputs of each kind that a test tries.
"""

import faulthandler
import os
import re
import resource
import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HEADER = 512
"""Size of the header of most formats, where half of the damage is done."""

_WORDS = (
    b"0 1 -1 2 3 7 255 256 65535 65536 2147483647 -2147483648 4294967295 4294967296 999999999999 "
    b"1000000000000000000 9223372036854775807 9223372036854775808 99999999999999999999999 "
    b"1e400 -1e400 1e38 1e39 1e300 1e-400 nan NaN -nan inf -inf infinity 0x10 1_000 1.5 .5 5. +1 -0 00001 1e 1,5 "
    b'1/2/3 // # " [] {} null true x list'
).split(b" ") + [b"", b" ", b"\n", b"\r", b"\t", b"\0", b"\xff\xfe", b"\xc2\xb2", b"\xe2\x80\xa8"]
_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10**12, 2**62, 2**63, -1]
_NUMBER = re.compile(rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_]{2,}")


def mutations(default: int) -> int:
    """Return the number of damaged inputs to try."""
    return int(os.environ.get("HF_ANY3D_MUTATIONS", default))


def mutate(data: bytes, generator: np.random.Generator, other: bytes = b"") -> bytes:
    """Damage a file in one to three ways.

    Args:
        data: the file.
        generator: source of all randomness; the same state gives the same damage.
        other: another file of the kind, parts of which may be spliced in.

    Returns:
        The damaged file, at most a little longer than `data` and `other` together.
    """
    for _ in range(int(generator.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        damage = _DAMAGES[int(generator.integers(len(_DAMAGES)))]
        data = damage(data, generator, other or data)
    return data


def _place(data: bytes, generator: np.random.Generator) -> int:
    reach = len(data) if generator.random() < 0.5 else min(len(data), HEADER)
    return int(generator.integers(reach + 1))


def _span(data: bytes, generator: np.random.Generator) -> tuple[int, int]:
    start = _place(data, generator)
    # Short and long pieces are equally likely.
    return start, min(len(data), start + int(2 ** generator.uniform(0, np.log2(max(len(data), 2)))))


def _put(data: bytes, start: int, stop: int, piece: bytes) -> bytes:
    return data[:start] + piece + data[stop:]


def _change_bytes(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 8))):
        at = _place(data, generator)
        changed[at : at + 1] = bytes([int(generator.integers(256))])
    return bytes(changed)


def _flip_bit(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    at = _place(data, generator)
    return _put(data, at, at + 1, bytes(value ^ 1 << int(generator.integers(8)) for value in data[at : at + 1]))


def _cut_off(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    return data[: _place(data, generator)]


def _insert(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    at = _place(data, generator)
    return _put(data, at, at, generator.bytes(int(generator.integers(1, 9))))


def _remove(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    start, stop = _span(data, generator)
    return _put(data, start, stop, b"")


def _repeat(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    start, stop = _span(data, generator)
    return _put(data, stop, stop, data[start:stop])


def _swap(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    a, b, c, d = sorted(_place(data, generator) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _splice(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    if generator.random() < 0.5:
        return data[: _place(data, generator)] + other[_place(other, generator) :]
    start, stop = _span(other, generator)
    at = _place(data, generator)
    return _put(data, at, at, other[start:stop])


def _write_number(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    size, order = int(generator.choice([1, 2, 4, 8])), ("little", "big")[int(generator.integers(2))]
    at = _place(data, generator)
    if generator.random() < 0.7:  # fields of headers are mostly aligned
        at -= at % size
    value = _NUMBERS[int(generator.integers(len(_NUMBERS)))] % 256**size
    return _put(data, at, min(at + size, len(data)), value.to_bytes(size, order))


def _replace_match(pattern: re.Pattern, data: bytes, generator: np.random.Generator, words: list[bytes]) -> bytes:
    start = 0 if generator.random() < 0.5 else _place(data, generator)
    found = list(pattern.finditer(data, start, start + HEADER))
    if not found:
        return data
    match = found[int(generator.integers(len(found)))]
    return _put(data, *match.span(), words[int(generator.integers(len(words)))])


def _write_token(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    return _replace_match(_NUMBER, data, generator, _WORDS)


def _write_word(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    return _replace_match(_WORD, data, generator, _WORD.findall(other[:HEADER]) or _WORDS)


def _change_lines(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    start = 0 if generator.random() < 0.5 else _place(data, generator)
    lines = data[start:].split(b"\n", 20)
    a, b = generator.integers(len(lines), size=2).tolist()
    match int(generator.integers(3)):
        case 0:
            lines[a], lines[b] = lines[b], lines[a]
        case 1:
            del lines[a]
        case _:
            lines.insert(b, lines[a])
    return data[:start] + b"\n".join(lines)


_DAMAGES: list[Callable[[bytes, np.random.Generator, bytes], bytes]] = [
    _change_bytes,
    _flip_bit,
    _cut_off,
    _insert,
    _remove,
    _repeat,
    _swap,
    _splice,
    _write_number,
    _write_token,
    _write_word,
    _change_lines,
]


class TooLong(BaseException):
    """An input took longer than allowed. A BaseException, so that readers do not catch it."""


@contextmanager
def bounded(seconds: float = 5.0, megabytes: int = 512) -> Iterator[Callable[[], None]]:
    """Limit the time and memory of the code inside.

    Time is CPU time, so that a busy machine does not matter; code that hangs outside of Python is ended after ten
    minutes. Memory is address space, so that requested memory counts even if it is never touched; requesting more
    is a MemoryError. Warnings other than UserWarning are errors.

    Args:
        seconds: for one input.
        megabytes: in addition to the memory at the start.

    Yields:
        A function to call before each input.
    """

    def stop(*_):
        raise TooLong(f"more than {seconds} seconds of CPU")

    def begin() -> None:
        nonlocal begun
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        if begun % 100 == 0:  # starts a thread
            faulthandler.dump_traceback_later(600, exit=True)
        begun += 1

    begun = 0
    handler, limits = signal.signal(signal.SIGVTALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (megabytes << 20), limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            yield begin
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Trace memory requested by Python and numpy; yield a function that returns the peak since its last call."""

    def peak() -> int:
        seen = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return seen

    tracemalloc.start()
    try:
        yield peak
    finally:
        tracemalloc.stop()
