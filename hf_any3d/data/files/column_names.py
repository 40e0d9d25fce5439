"""Names of the columns of tables: which are coordinates, colors, normals, labels and others, and in which units."""

import re
from collections.abc import Iterable, Sequence

from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.splats import SPLAT_COLORS

# Names of the columns of each field as `plain_name` returns them; the first that are all there count.
# This is the one table of names: those of any format are known in all others.
_NORMALS = (
    "nx ny nz",
    "normal_x normal_y normal_z",
    "normalx normaly normalz",
    "nor_normalx nor_normaly nor_normalz",  # E57
    "normals_x normals_y normals_z",
    "n_x n_y n_z",
    "normals_0 normals_1 normals_2",
    "normal_0 normal_1 normal_2",
)
_COLORS = (
    "red green blue",
    "r g b",
    "rf gf bf",
    "diffuse_red diffuse_green diffuse_blue",
    "colorred colorgreen colorblue",  # E57
    "color_red color_green color_blue",
    "color_r color_g color_b",
    "rgb_0 rgb_1 rgb_2",
    "colors_0 colors_1 colors_2",
    " ".join(SPLAT_COLORS),
)
# RIEGL has amplitudes beside reflectances.
_INTENSITIES = "intensity reflectance remission reflectivity strength intensities refl i amplitude".split()
# "channel" is what Autoware calls the laser, "line" what Livox does, "laser_number" Argoverse.
_RINGS = (
    "ring ring_id ring_index ring_number laser_id laserid laser laser_number laser_index laser_no channel channel_id "
    "beam beam_id line line_id"
).split()
# Classes come before `label`: where a file has both, the label may be the number of an object.
_CLASSES = (
    "class classification class_id class_label classes semantic semantics semantic_label semantic_labels "
    "semantic_class semantic_id sem sem_label sem_labels sem_class"
).split()
_LABELS = [*_CLASSES, *"category category_id label labels label_id part part_id part_label parts".split()]
_LABELS += "segment seg seg_label".split()
# Names of rows and columns of a scan grid, which alone stand for intensities or lasers.
_GRIDS = (("i", "j"), ("line", "pixel"), ("line", "sample"), ("line", "column"), ("line", "col"))
_RETURNS = ("return_number", "returnnumber", "return_num")
_COUNTS_OF_RETURNS = ("number_of_returns", "numberofreturns", "num_returns", "num_of_returns", "number_returns")
_FIELDS = {"normals": _NORMALS, "colors": _COLORS, "intensity": _INTENSITIES, "ring": _RINGS, "labels": _LABELS}
_FIELDS |= {"return_number": _RETURNS, "number_of_returns": _COUNTS_OF_RETURNS}
# Columns of arrays, as ParaView and VeloView write them.
_ARRAYS_OF_POINTS = ("points_0 points_1 points_2", "points_m_xyz_0 points_m_xyz_1 points_m_xyz_2")
# Names of a coordinate, in which {0} stands for x, y or z: `X_UTME` is that of a map, `POINT_X` that of ArcGIS.
_AXIS = re.compile(
    r"((point|pos|position|coord|coords|location|cartesian)_?)?([xyz])(_?(coord|coordinate|pos|utm[en]))?"
)
# Names of surveyors. They put northing first as often as last, so that only names tell which is which.
_SURVEYED = {
    "x": ("easting", "eastings", "east", "utm_e", "utm_easting"),
    "y": ("northing", "northings", "north", "utm_n", "utm_northing"),
    "z": ("elevation", "elev", "height", "altitude", "alt", "level"),
}
_DEGREES = (("longitude", "long", "lon", "lng"), ("latitude", "lat"))
IN_DEGREES = "are in degrees; reproject to meters or feet, for example with pdal's filters.reprojection or pyproj"
"""Words for columns of longitude and latitude."""
_SHORT_SURVEYED = ("e n z", "e n h", "e n elev", "e n elevation", "e n height")
NAMES_OF_AXES = "x, y, z or easting, northing, elevation"
"""Names of coordinates, for errors."""
# A unit in brackets, or as the last word.
LENGTHS = {
    "mm": 0.001,
    "cm": 0.01,
    "dm": 0.1,
    "m": 1.0,
    "km": 1000.0,
    "in": 0.0254,
    "inch": 0.0254,
    "inches": 0.0254,
    "ft": 0.3048,
    "feet": 0.3048,
    "foot": 0.3048,
    "usft": 1200 / 3937,
    "ftus": 1200 / 3937,
    "usfeet": 1200 / 3937,
    "ussurveyfeet": 1200 / 3937,
    "ussurveyfoot": 1200 / 3937,
}
for _name, _length in (
    ("micrometer", 1e-6),
    ("millimeter", 0.001),
    ("centimeter", 0.01),
    ("meter", 1.0),
    ("kilometer", 1000.0),
):
    _spellings = (_name, f"{_name[:-2]}re")  # also as in Britain
    LENGTHS |= {spelling + plural: _length for spelling in _spellings for plural in ("", "s")}
_ANGLES = ("deg", "degree", "degrees", "°", "dd")
_BRACKETS = re.compile(r"[\[(<]([^\])>]*)[\])>]")
_LAST_WORD = re.compile(
    rf"(?<=\w)[\s_/:.-]+(us[-_ ]?ft|us[-_ ]?feet|{'|'.join(sorted({*LENGTHS} - {'in'}, key=len, reverse=True))})\s*$"
    # A word that stands for other things, too
    r"|(?<=\b[xyz])[\s_]+(in)\s*$"
)


def plain_name(name: str) -> str:
    """Return the name of a column in small letters, without a unit, blanks and CloudCompare's `scalar_`."""
    text = _LAST_WORD.sub("", _BRACKETS.sub("", name.lower()))
    return re.sub(r"[\s:.-]+", "_", text).strip("_").removeprefix("scalar_")


def is_unit(word: str) -> bool:
    """Return whether a word is a unit of coordinates: a length, or degrees."""
    return _unit_of(f"[{word}]") is not None


def _unit_of(name: str) -> str | None:
    """Return the unit in the name of a column, a key of `LENGTHS` or "deg"; None without one that is known."""
    match = _BRACKETS.search(name.lower()) or _LAST_WORD.search(name.lower())
    word = "" if match is None else re.sub(r"[\s._-]", "", match[match.lastindex or 0])
    return "deg" if word in _ANGLES else word if word in LENGTHS else None


def units_of_axes(names: Sequence[str], source: Source) -> dict[str, float]:
    """Return the units that the names of x, y and z state: `meters_per_unit`, and that of other heights.

    Raises:
        PointCloudError: They are degrees, or x and y have two units.
    """
    units = [_unit_of(name) for name in names]
    if "deg" in units[:2]:
        raise PointCloudError(f"columns {names[0]} and {names[1]} {IN_DEGREES}")
    stated = [unit for unit in units if unit is not None]
    if not stated:
        return {}
    lengths = [LENGTHS.get(unit or stated[-1], 1.0) for unit in units]
    x, y, z = lengths
    if x != y:
        raise PointCloudError(f"columns {', '.join(names)} have different units; use the same unit for x and y")
    if len(stated) < 3:
        source.warn(f"columns {', '.join(names)}: assuming {stated[-1]} for all of them")
    return {"meters_per_unit": x} if z == x else {"meters_per_unit": x, "meters_per_height": z}


def fields_of(names: Iterable[str], label: str | None = None) -> dict[str, list[str]]:
    """Return the fields of a cloud that columns of these names have, each with the names of its columns.

    Args:
        names: Names of all columns.
        label: The one that labels are read from, and nothing else; by default one of the usual names.

    Raises:
        PointCloudError: `label` is a coordinate.
    """
    names = list(names)
    plain: dict[str, str] = {}
    # Of `intensity` and `scalar_intensity` the plain one counts.
    for name in sorted(names, key=lambda name: plain_name(name) != name):
        plain.setdefault(plain_name(name), name)
    for line, place in _GRIDS:
        if plain.keys() >= {line, place}:
            del plain[line]
    fields = {}
    axes = _axes_of(plain)
    if axes:
        fields["points"] = [plain[name] for name in axes]
    for field, variants in _FIELDS.items():
        wanted = next((names for names in map(str.split, variants) if plain.keys() >= {*names}), None)
        if wanted:
            fields[field] = [plain[name] for name in wanted]
    if label is None:
        return fields
    if label in fields.get("points", ()):
        raise PointCloudError(f"column {label!r} holds coordinates; choose another label column")
    # Intensities that are labels in truth would tell a model its answers.
    fields = {field: columns for field, columns in fields.items() if label not in columns}
    return {**fields, "labels": [label]}


def wanted_fields(names: Iterable[str], source: Source) -> dict[str, list[str]]:
    """Return `fields_of` with the labels that the caller of a reader has chosen, if any."""
    names = list(names)
    chosen = source.chosen_label(names)
    fields = fields_of(names, chosen)
    # Those of another part of the file were chosen.
    if source.label_field is not None and chosen is None:
        fields.pop("labels", None)
    further = {*source.further_columns(names).values()}
    # What is read as a column of its own is no label, unless it was chosen as that.
    if chosen is None and further & {*fields.get("labels", ())}:
        del fields["labels"]
        of_others = fields_of(name for name in names if name not in further)
        if "labels" in of_others:
            fields["labels"] = of_others["labels"]
    for columns in fields.values():
        source.check_once(columns)
    return fields


def is_label_name(name: str) -> bool:
    """Return whether a column of this name may hold labels."""
    return plain_name(name) in _LABELS


def _axes_of(plain: Iterable[str]) -> list[str] | None:
    """Return the names of the columns of x, y and z among plain names, or None."""
    names = {*plain}
    if names >= {*"xyz"}:
        return list("xyz")
    for variant in map(str.split, (*_ARRAYS_OF_POINTS, *_SHORT_SURVEYED)):
        if names >= {*variant}:
            return variant
    axes: dict[str, str] = {}
    for name in plain:
        match = _AXIS.fullmatch(name)
        if match:
            axes.setdefault(match[3], name)
    for axis, words in _SURVEYED.items():
        word = next((word for word in words if word in names), None)
        if word:
            axes.setdefault(axis, word)
    return [axes[axis] for axis in "xyz"] if len(axes) == 3 else None


def names_of(field: str) -> tuple[str, ...]:
    """Return the plain names that a column or array of a field may have alone, the first that counts before others."""
    return tuple(name for name in _FIELDS[field] if len(name) > 1)


def measured_words() -> set[str]:
    """Return the plain names of columns that say where a point is or how it was measured; those of labels are none."""
    words = {*"xyz"}
    for field, names in _FIELDS.items():
        if field != "labels":
            for name in names:
                words.update(name.split())
    return words


def names_in_degrees(names: Iterable[str]) -> list[str]:
    """Return the columns of longitude and latitude among names, in their order; empty unless both are there."""
    found = []
    kinds = set()
    for name in dict.fromkeys(names):
        word = re.sub(r"^(gps|wgs84|geo)_?|_?(deg|degrees|dd|wgs84)$", "", plain_name(name))
        of_word = [spellings for spellings in _DEGREES if word in spellings]
        if of_word:
            found.append(name)
            kinds.update(of_word)
    return found if len(kinds) == len(_DEGREES) else []
