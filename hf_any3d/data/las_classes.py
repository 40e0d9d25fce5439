"""Names of the classes of LAS, and which codes mean that nobody has classified a point."""

# ASPRS, "LAS specification 1.4 - R15", table 17.
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
"""Code of a class -> its name; codes to 63 are reserved, those from 64 on are the user's own."""

UNCLASSIFIED = (0, 1)
"""Codes of points that have no class."""


def class_name(code: int, names: dict[int, str] | None = None) -> str:
    """Return the name of a class, or "class 64" for one without a name."""
    return (names or {}).get(code) or f"class {code}"
