"""Compare what a page shows with what was printed."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def same(shown: str, printed: str, exact: bool = False) -> bool:
    """Return whether a text was printed as it is shown; `…` stands for anything, also for several lines.

    If not `exact`, only whole numbers are equal; others are near, as digits are left out and machines differ: by 2 %,
    or by one and a half of the last digit shown. The size of a tensor may be shown as a tuple; spaces and empty lines
    do not count.
    """
    if exact:
        pattern = r"(?:.|\n)*?".join(map(re.escape, shown.rstrip("\n").split("…")))
        return re.fullmatch(pattern, on_screen(printed).rstrip("\n")) is not None
    shown, printed = _plain(shown), _plain(printed)
    numbers: list[str] = []
    pattern = ""
    for piece in re.split(rf"(…|{_NUMBER.pattern})", shown):
        if piece == "…":
            pattern += r"(?:.|\n)*?"
        elif _NUMBER.fullmatch(piece):
            numbers.append(piece)
            pattern += f"({_NUMBER.pattern})"
        else:
            pattern += re.escape(piece)
    match = re.fullmatch(pattern, printed)
    return match is not None and all(map(_near, numbers, match.groups()))


def on_screen(text: str) -> str:
    """Return the lines of a text as a terminal shows them, where progress bars write over themselves."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def _plain(text: str) -> str:
    text = re.sub(r"torch\.Size\(\[(\d+)\]\)", r"(\1,)", text)
    text = re.sub(r"torch\.Size\(\[([^]]*)\]\)", r"(\1)", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _near(shown: str, printed: str) -> bool:
    if "." not in shown and "e" not in shown:
        return shown == printed
    digits = len(re.sub(r"e.*", "", shown).partition(".")[2])
    exponent = int(shown.partition("e")[2] or 0)
    one, other = (float(text.replace(",", "")) for text in (shown, printed))
    return math.isclose(one, other, rel_tol=0.02, abs_tol=1.5 * 10 ** (exponent - digits))
