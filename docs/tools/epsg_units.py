"""Write the units of EPSG's coordinate systems for the reader of LAS: `python -m docs.tools.epsg_units`.

They come from the copy of EPSG's tables in pyproj, which the base does without. The module is committed; a test
compares it with the installed pyproj.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from docs.tools.site import ROOT

PATH = ROOT / "hf_any3d" / "data" / "files" / "epsg_table.py"
_WIDTH = 119
_HEAD = '''"""Units of EPSG's coordinate systems, version {version}, written by `python -m docs.tools.epsg_units`.

Numbers of systems are ranges in which EPSG knows each one, so that of others nothing is claimed. Systems of deprecated
numbers, in older files, are among them.
"""

LENGTHS = {{
{lengths}
}}
"""Number of a unit of length -> meters."""
'''


@cache
def units_of_systems() -> tuple[dict[int, int], dict[int, int], set[int]]:
    """Return number of a system -> number of its unit, the same of heights, and the systems in degrees, by pyproj."""
    import pyproj
    from pyproj.database import query_crs_info

    number_of = {name: number for number, (name, _) in lengths().items()}
    flat: dict[int, int] = {}
    heights: dict[int, int] = {}
    degrees: set[int] = set()
    for found in query_crs_info(auth_name="EPSG", allow_deprecated=True):
        number = int(found.code)
        system = pyproj.CRS.from_epsg(number)
        upward = [axis.unit_name for axis in system.axis_info if axis.direction in ("up", "down")]
        others = {axis.unit_name for axis in system.axis_info if axis.direction not in ("up", "down")}
        assert len(others) <= 1, f"EPSG:{number}: x and y in {others}"
        if others and (unit := number_of.get(others.pop())) is not None:
            flat[number] = unit
        elif system.is_geographic or any(part.is_geographic for part in system.sub_crs_list):
            degrees.add(number)
        if upward:
            heights[number] = number_of[upward[0]]
    return flat, heights, degrees


def lengths() -> dict[int, tuple[str, float]]:
    """Return number of a unit -> its name and its length in meters."""
    from pyproj.database import get_units_map

    units = get_units_map(auth_name="EPSG", category="linear", allow_deprecated=True)
    return {int(unit.code): (name, unit.conv_factor) for name, unit in units.items()}


def module() -> str:
    """Return the text of the module."""
    from pyproj.database import get_database_metadata

    flat, heights, degrees = units_of_systems()
    # Units of x, y and z, and others that files may name themselves
    listed = []
    for number, (name, meters) in sorted(lengths().items()):
        # EPSG rounds 1200 / 3937, which a hundred kilometers from the origin is a tenth of a millimeter.
        length = "1200 / 3937" if number == 9003 else repr(meters)
        # EPSG has the British spelling.
        american = re.sub(r"met(?:re)", "meter", name)
        listed.append(f"    {number}: {length},  # {american}")
    text = _HEAD.format(version=get_database_metadata("EPSG.VERSION"), lengths="\n".join(listed))
    text += f"# Unit of x and y -> systems\nFLAT = {_dictionary(flat)}\n"
    text += f"# Unit of heights -> systems\nHEIGHTS = {_dictionary(heights)}\n"
    return f"{text}# Systems in degrees\nDEGREES = {_string(degrees)}\n"


def _dictionary(unit_of: Mapping[int, int]) -> str:
    systems = defaultdict(list)
    for number, unit in unit_of.items():
        systems[unit].append(number)
    return "{\n" + "".join(f"    {unit}: {_string(systems[unit], '    ')},\n" for unit in sorted(systems)) + "}"


def _string(numbers: Iterable[int], indent: str = "") -> str:
    """Return numbers as ranges in a string of Python, on several lines if they are many."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    lines = textwrap.wrap(words, _WIDTH - len(indent) - 8, break_on_hyphens=False)
    if len(lines) == 1:
        return f'"{lines[0]}"'
    # A space at the end of each line but the last, where strings are joined
    parts = [f'{indent}    "{line}{"" if line == lines[-1] else " "}"\n' for line in lines]
    return f"(\n{''.join(parts)}{indent})"


def main() -> None:
    """Write the module."""
    Path(PATH).write_text(module(), encoding="utf-8")
    print(PATH)


if __name__ == "__main__":
    main()
