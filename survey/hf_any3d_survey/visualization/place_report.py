"""Page of the report of an inventory: answer first, then the cells to check, the map, and all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_any3d.utils.messages import counted, percent
from hf_any3d.visualization.html_pages import html_page

# Cividis (Nuñez et al. 2018), which people with and without color vision deficiency read alike
_CIVIDIS = "#00224e #123570 #3b496c #575d6d #707173 #8a8678 #a59c74 #c3b369 #e1cc55 #fee838".split()
# Layers of the map: key of a cell -> name, and the format of a value
_LAYERS = {
    "doubt": ("doubt", "percent"),
    "ground_scatter_m": ("scatter of ground points (m)", "number"),
    "ground_guessed_share": ("share of guessed ground", "percent"),
    "class_score_mean": ("mean probability of the class", "number"),
    "points_per_m2": ("points per m²", "number"),
    "ground_points_per_m2": ("ground points per m²", "number"),
    "crown_cover_share": ("crown cover", "percent"),
    "canopy_height_m": ("highest vegetation (m)", "number"),
    "trees": ("trees", "number"),
    "noise_share": ("noise", "percent"),
}
_KINDS = {"non-vegetated": "non_vegetated", "vegetated": "vegetated"}
# What ASPRS calls the accuracy at surveyed checkpoints of each kind.
_NAMES = {"non-vegetated": "non-vegetated (NVA)", "vegetated": "vegetated (VVA)"}
# What the report calls settings, and how it writes their values.
_SETTINGS = {
    "evenness": ("Similarity in size expected of neighboring trees (0: none)", "{:g}"),
    "min_height": ("Lowest height of a tree", "{:g} m"),
    "min_area": ("Smallest area of a building", "{:g} m²"),
    "number_field": ("Attribute of the numbers of trees and buildings in copies", "{}"),
}
_CHANGED = {"unclassified": "of points that had none", "all": "of all points", "none": "none"}
_SIDE = 10  # units of the drawing along the edge of a cell
_RIM = 0.05  # share of a cell that its outermost twentieth is
_MOST_ENDS = 8  # numbers below the histogram, which are as large on a phone as elsewhere


def report_page(content: Mapping[str, Any]) -> str:
    """Return the text of the page; `content` is that of `hf_any3d_survey.inventory.report.PlaceReport`."""
    names = _file_names(content)
    title = names[0] if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'other tile')}"
    return html_page(
        "report.html",
        folder=Path(__file__).with_name("templates"),
        title=f"Inventory of {title}",
        about=content,
        answer=_answer(content),
        doubts=[(doubt["text"], Path(doubt["file"] or "").name) for doubt in content["doubts"]],
        check=[{**cell, "doubt": _percent(cell["doubt"])} for cell in content["check_by_hand"]],
        map=_map(content),
        histogram=_histogram(content["trees"]["height_m"]),
        accuracy=_accuracy(content),
        figures=_figures(content),
        settings=_settings(content),
        data={"layers": {key: list(layer) for key, layer in _LAYERS.items()}, "colors": _CIVIDIS},
    )


def _file_names(content: Mapping[str, Any]) -> list[str]:
    # Folders of the machine mean nothing to those who get the page.
    return [Path(file).name for file in content["files"]]


def _percent(share: float) -> str:
    return f"{percent(share, 1)} %"


def _answer(content: Mapping[str, Any]) -> list[str]:
    """Return what was found, and how far to trust it, in two sentences."""
    trees, buildings, check = content["trees"], content["buildings"], content["check_by_hand"]
    found = f"{counted(trees['trees'], 'tree')} ({trees['trees_per_ha']:,} per hectare"
    if trees["height_m"] is not None:
        found += f", up to {trees['height_m']['max']:.1f} m"
    found += f") and {counted(buildings['buildings'], 'building')} on {content['area_ha']:,.2f} ha"
    rmse = content["ground_cross_check"]["all"]["rmse_z_m"]
    trust = (
        f"The ground is interpolated without nearby points on {_percent(content['ground_guessed_share'])} of the area"
    )
    if rmse is not None:
        trust += f"; elsewhere, the RMSEz on held-out ground points is {rmse:.2f} m"
    if check:
        trust += f". Check first the {counted(len(check), 'cell')} below"
    return [f"{found}, with {_percent(trees['crown_cover_share'])} crown cover.", f"{trust}."]


def _map(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells with their places in a drawing, north up."""
    cells = _without_rim(content["cells"])
    width = content["cell_width_m"] / content["map_unit_m"]
    left = min(cell["x"] for cell in cells)
    top = max(cell["y"] for cell in cells)
    number_of = {(cell["x"], cell["y"]): number for number, cell in enumerate(content["check_by_hand"], 1)}
    shown = []
    for cell in cells:
        column = round((cell["x"] - left) / width)
        row = round((top - cell["y"]) / width)
        values = [cell[key] for key in _LAYERS]
        shown.append(
            {
                "x": column * _SIDE,
                "y": row * _SIDE,
                "place": f"{cell['x']:,.1f}, {cell['y']:,.1f}",
                "reasons": "; ".join(cell["reasons"]) or "nothing in doubt",
                "values": values,
                "number": number_of.get((cell["x"], cell["y"])),
            }
        )
    wide = max(cell["x"] for cell in shown) + _SIDE
    high = max(cell["y"] for cell in shown) + _SIDE
    # Marks are as large in the drawing of a large place as in that of a small one.
    mark = 0.02 * max(wide, high)
    return {
        "cells": shown,
        "side": _SIDE,
        "width": wide,
        "height": high,
        "mark": mark,
        "cell": content["cell_width_m"],
    }


def _without_rim(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the cells without rows and columns that have points on their inner edge alone, as on a tile's border."""
    kept = list(cells)
    for axis in "xy":
        for outermost in (min, max):
            end = outermost(cell[axis] for cell in kept)
            inner = [cell for cell in kept if cell[axis] != end]
            if inner and all(cell["filled_share"] <= _RIM for cell in kept if cell[axis] == end):
                kept = inner
    return kept


def _histogram(heights: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the bars of the heights of trees, with their heights in percent of the highest."""
    if heights is None:
        return None
    counts = heights["histogram"]["trees"]
    width = heights["histogram"]["bin_width"]
    most = max(counts)
    step = next(step for step in (1, 2, 5, 10) if len(counts) <= step * _MOST_ENDS or step == 10)
    bars = []
    for number, count in enumerate(counts):
        low_end, high_end = number * width, (number + 1) * width
        text = f"{counted(count, 'tree')} of {low_end:g} to {high_end:g} m"
        end = "" if number % step else f"{low_end:g}"
        bars.append({"high": round(100 * count / most, 1), "text": text, "end": end})
    return {"bars": bars, "most": counted(most, "tree"), "last": f"{len(counts) * width:g} m"}


def _accuracy(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables of the errors of the ground, and what is said about them."""
    tables = {"Held-out ground points": content["ground_cross_check"]}
    notes = []
    checkpoints = content["checkpoints"]
    if checkpoints is not None:
        tables["Your checkpoints"] = checkpoints
        if checkpoints["outside"]:
            outside = counted(checkpoints["outside"], "checkpoint")
            notes.append(f"{outside} too far from the scan, not used.")
        least = content["least_checkpoints"]
        few = [name for name, key in _KINDS.items() if 0 < checkpoints[key]["points"] < least]
        if few:
            notes.append(f"Fewer {' and '.join(few)} checkpoints than the {least} that ASPRS requires.")
    rows = []
    for name, errors in tables.items():
        for kind, key in _KINDS.items():
            values = [errors[key][column] for column in ("rmse_z_m", "mean_error_m", "largest_error_m")]
            shown = ["–" if value is None else f"{value:.3f}" for value in values]
            shown_kind = _NAMES[kind] if errors is checkpoints else kind
            rows.append([name, shown_kind, f"{errors[key]['points']:,}", *shown])
    return {"rows": rows, "notes": notes}


def _figures(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of the figures of the place."""
    trees, buildings = content["trees"], content["buildings"]
    rows = [
        ("Area with points", f"{content['area_ha']:,.2f} ha"),
        ("Points", f"{content['points']:,}"),
        ("Points per m²", f"{content['points_per_m2']:,}"),
        ("Ground points per m²", f"{content['ground_points_per_m2']:,}"),
        ("Guessed ground (no ground point within 5 m)", _percent(content["ground_guessed_share"])),
        ("Noise points (excluded)", f"{content['noise_points']:,}"),
        ("Withheld points (excluded)", f"{content['withheld_points']:,}"),
        ("Points far from all others (excluded)", f"{content['far_points']:,}"),
        ("By flags and classes of the files", content["left_out_points"] or "no points are left out"),
        ("Trees per hectare", f"{trees['trees_per_ha']:,}"),
        ("Crown cover (cells with vegetation of 2 m or more)", _percent(trees["crown_cover_share"])),
        ("Trees above interpolated ground", f"{trees['guessed_ground_trees']:,}"),
    ]
    for name, key in (("Height of trees", "height_m"), ("Crown diameter", "crown_diameter_m")):
        if trees[key] is not None:
            values = trees[key]
            middle = f"{values['percentile_5']:.1f} to {values['percentile_95']:.1f} m"
            rows.append((name, f"median {values['median']:.1f} m, 90 % from {middle}"))
    rows.append(("Buildings", f"{buildings['buildings']:,}, with roofs of {buildings['area_m2']:,.0f} m²"))
    return rows


def _settings(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what the inventory was made with, in the words of a reader without the program."""
    given = content["settings"]
    smoothing = given.get("smoothing")
    versions = [f"{name} {number}" for name, number in content["version"].items()]
    rows: list[tuple[str, Any]] = [
        ("Version", ", ".join(versions)),
        ("Model", content["model"]),
        ("Command", content["command"]),
        ("Coordinate system", content["coordinate_system"] or "none in the files"),
        ("Unit of x and y in the files and on this page", f"{content['map_unit_m']:.10g} m"),
        ("Unit of elevations in the files; this page uses meters", f"{content['elevation_unit_m']:.10g} m"),
    ]
    if given.get("unit"):
        rows.append(("Unit, as the files state none", given["unit"]))
    by = "chosen by the data" if smoothing is None else f"{smoothing:g} m"
    rows.append(("Smoothing of the canopy before trees are told apart", by))
    for key, (name, words) in _SETTINGS.items():
        if key in given:
            rows.append((name, words.format(given[key])))
    if given.get("classes") in _CHANGED:
        rows.append(("Classes written to copies", _CHANGED[given["classes"]]))
    rows.append(("Files", ", ".join(_file_names(content))))
    rows += [(f"Left out: {Path(row['file']).name}", row["reason"]) for row in content["left_out"]]
    return [(name, str(value)) for name, value in rows if value != ""]
