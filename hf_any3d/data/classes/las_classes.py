"""Meanings of the classes of LAS, by point format: their names and colors, and which of them are no object.

Source: ASPRS, "LAS specification 1.4 - R15": table 9 for point formats 0 to 5, tables 16 and 17 for 6 to 10.
"""

from __future__ import annotations

from enum import StrEnum

LEGACY, CURRENT = "asprs_legacy", "asprs"
"""Tables of codes: that of point formats 0 to 5, with five bits for the class, and that of formats 6 to 10."""

ASPRS_CLASSES: dict[int, str] = {
    0: "never classified",
    1: "unclassified",
    2: "ground",
    3: "low vegetation",
    4: "medium vegetation",
    5: "high vegetation",
    6: "building",
    7: "low noise",
    8: "model key point",
    9: "water",
    10: "rail",
    11: "road surface",
    12: "overlap",
    13: "wire guard",
    14: "wire conductor",
    15: "transmission tower",
    16: "wire structure connector",
    17: "bridge deck",
    18: "high noise",
    19: "overhead structure",
    20: "ignored ground",
    21: "snow",
    22: "temporal exclusion",
}
"""Code of a class -> its name in the point formats that define it; codes from 64 on are the user's own."""

ASPRS_COLORS: dict[int, str] = {
    0: "#808080",
    1: "#b0b0b0",
    2: "#d2b48c",
    3: "#a6d96a",
    4: "#208648",
    5: "#06553f",
    6: "#e6550d",
    7: "#ff00ff",
    8: "#c49a6c",
    9: "#1f78d1",
    10: "#5b4b8a",
    11: "#5a5a5a",
    12: "#d9c7e8",
    13: "#ffd92f",
    14: "#f2b705",
    15: "#8c2d8c",
    16: "#ff9f1c",
    17: "#00b3b3",
    18: "#c71585",
    19: "#9e4a2f",
    20: "#a0703c",
    21: "#a8e0ff",
    22: "#3f3f74",
}
"""Code of a class -> the color that surveyors know it by: brown ground, green plants, red buildings, blue water.

Ground, vegetation of any height and buildings differ by more than 20 in Lab for people who cannot tell red from green.
"""

UNCLASSIFIED = (0, 1)
"""Codes of points that have no class."""

FAMILIES: dict[str, tuple[int, ...]] = {"vegetation": (3, 4, 5), "noise": (7, 18), "wire": (13, 14)}
"""Name of several classes -> their codes, any of which says what all of them are."""


class Kind(StrEnum):
    """Kinds of class codes: what a code means for a point."""

    OBJECT = "what it is"
    UNCLASSIFIED = "nothing, as nobody has classified it"
    NOISE = "that it is an error of measurement"
    USE = "how it is used, and not what it is"
    RESERVED = "nothing, as the code is reserved"
    FLAGGED = "perhaps that it is withheld, by a bit of older formats in its class"
    OWN = "what the user has defined"


_NOISE = (7, 18)
# Ground that is a key point of a model or lies near a breakline, points of a second strip, and what has changed from
# one survey to the next: their class says why a program has set them aside.
_USES = {LEGACY: (8, 12), CURRENT: (20, 22)}
# Table 9 reserves all codes but these; programs have used the others in several ways, such as 10 for ignored ground.
_DEFINED_BEFORE = (*range(10), 12)
# Formats from 6 on have a flag for each of these.
_FLAGS_NOW = (8, 12)
_LAST_RESERVED = 63
# The highest of the three flags above the five bits of older formats.
_WITHHELD = 128


def kind_of(code: int, table: str) -> Kind:
    """Return the kind of a class code in a table, `LEGACY` or `CURRENT`."""
    if code < 0 or code in UNCLASSIFIED:
        return Kind.UNCLASSIFIED
    if code in _USES[table]:
        return Kind.USE
    if table == LEGACY:
        if code not in _DEFINED_BEFORE:
            return Kind.RESERVED
    # PDAL before 2.6 took classes of older formats with their flags: 140 is 12, withheld.
    elif code >= _WITHHELD and code & 31 in _DEFINED_BEFORE:
        return Kind.FLAGGED
    elif code > _LAST_RESERVED:
        return Kind.OWN
    elif code in _FLAGS_NOW or code not in ASPRS_CLASSES:
        return Kind.RESERVED
    return Kind.NOISE if code in _NOISE else Kind.OBJECT


def names_object(code: int, table: str) -> bool:
    """Return whether a code stands for a class of objects, of the standard or of the user."""
    return kind_of(code, table) in (Kind.OBJECT, Kind.OWN)


def names_of(table: str | None) -> dict[int, str]:
    """Return the names of codes in a table; those that it reserves have the name of the others, and say so."""
    if table is None:
        return {}
    return {
        code: f"{name}{RESERVED if kind_of(code, table) is Kind.RESERVED else ''}"
        for code, name in ASPRS_CLASSES.items()
    }


RESERVED = " (reserved)"
"""What follows the name of a class in files whose point format reserves its code."""


def class_name(code: int, names: dict[int, str] | None = None) -> str:
    """Return the name of a class, or "class 64" for one without a name."""
    return (names or {}).get(code) or f"class {code}"
