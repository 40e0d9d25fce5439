"""Units of coordinates that programs state in comments of formats without a place for them, such as OBJ and PLY."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hf_any3d.data.files.column_names import LENGTHS
from hf_any3d.data.files.source import Source
from hf_any3d.data.files.text_numbers import positive_number

_WORD = "|".join(sorted(map(re.escape, LENGTHS.keys() - {"in"}), key=len, reverse=True))
# Not "m/s", "m^2" or "meters per pixel"; "in" is a unit only where nothing follows that it could belong to.
_LENGTH = (
    rf"[\"'(\[]?(?P<word>us[\s_-]*(?:survey)?[\s_-]*(?:foot|feet|ft)|{_WORD}|in(?=[\s\"')\]]*(?:$|[;,.])))"
    r"(?![\w/^*²³])(?!\s*(?:per\b|[/^*²³]))"
)
_COUNT = r"(?P<count>[\d.]+(?:e[+-]?\d+)?)"
_OF = (
    "file|scene|model|mesh|vertex|point|points|length|distance|linear|coordinate|coordinates|measurement|drawing|world"
)
_STATEMENTS = (
    # "File units = inches" of SketchUp, "Units: mm", "units millimeters; …", "Unit: millimeter"
    re.compile(rf"(?:(?:{_OF})[\s_-]+)?units?\s*(?:[:=]|are|is|in|\s)\s*(?:in\s+)?(?:{_COUNT}\s*)?{_LENGTH}", re.I),
    # "vertex coordinates are measured in units, where 1 unit = 1000.000000 mm" of Mimics and 3-matic, "1 unit = 1 m"
    re.compile(rf"(?:.*\b)?1\s*unit\s*(?:=|is|equals)\s*{_COUNT}\s*{_LENGTH}", re.I),
    # "Coordinates are in meters", "all coordinates in mm"
    re.compile(
        rf"(?:[a-z]+\s+){{0,2}}coordinates?(?:\s+are)?(?:\s+(?:given|measured|stored))?\s+in\s+{_LENGTH}", re.I
    ),
)


def stated_length(comment: str) -> float | None:
    """Return the length in meters of the unit in a comment without its mark, None if it names no unit."""
    for statement in _STATEMENTS:
        if match := statement.match(comment.strip()):
            count = positive_number(match.groupdict().get("count") or "1")
            word = re.sub(r"[\s_-]", "", match["word"].lower())
            return None if count is None else count * LENGTHS[word]
    return None


def unit_of_comments(comments: Iterable[str], source: Source) -> dict[str, float]:
    """Return `meters_per_unit` if comments state it, and warn of comments that contradict each other."""
    lengths = {length for comment in comments if (length := stated_length(comment)) is not None}
    if len(lengths) > 1:
        told = " and ".join(f"{length:g} m" for length in sorted(lengths))
        source.warn(f"comments state units of {told}, so none of them is used")
    return {"meters_per_unit": lengths.pop()} if len(lengths) == 1 else {}
