"""Names and colors of the classes of LAS, and which codes mean that nobody has classified a point."""

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

ASPRS_COLORS: dict[int, str] = {
    0: "#808080",
    1: "#b0b0b0",
    2: "#a0703c",
    3: "#a6d96a",
    4: "#4caf3a",
    5: "#1b6b1b",
    6: "#e8442e",
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
    20: "#d2b48c",
    21: "#a8e0ff",
    22: "#3f3f74",
}
"""Code of a class -> the color that surveyors know it by: brown ground, green plants, red buildings, blue water."""

UNCLASSIFIED = (0, 1)
"""Codes of points that have no class."""


def class_name(code: int, names: dict[int, str] | None = None) -> str:
    """Return the name of a class, or "class 64" for one without a name."""
    return (names or {}).get(code) or f"class {code}"
