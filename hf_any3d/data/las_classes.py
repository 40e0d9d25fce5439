"""Names of the classes of points in LAS, numbered by ASPRS, the society that publishes the format."""

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
    16: "wire connector",
    17: "bridge deck",
    18: "high noise",
    19: "overhead structure",
    20: "ignored ground",
    21: "snow",
    22: "temporal exclusion",
}
"""Code -> name, by LAS 1.4, tables 9 and 10 (8 and 12 have been reserved since). From 64 on, codes are the user's."""
