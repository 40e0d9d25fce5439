"""The table of a study: a row for each run, in one Parquet file that also holds what all runs have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_any3d.utils.atomic_files import atomic_write

_ABOUT = b"study"
# Marks columns of values that a table has no type for, such as settings in settings.
_JSON = {b"encoding": b"json"}
# What a summary calls its runs; `runs` may also be their number.
_RUNS = ("runs", "all_runs")
# Column: where in the summary a run stands.
_PLACE = "place"


def write_table(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary of a study as a table.

    Args:
        path: Parquet file.
        summary: Its lists of runs, at the top or one level below, become rows; everything else is stored once, beside
            the table.
    """
    about, rows = dict(summary), []
    for key, value in summary.items():
        if key in _RUNS and _is_rows(value):
            rows += [{_PLACE: key, **run} for run in value]
            del about[key]
        elif isinstance(value, Mapping) and _is_rows(value.get("runs")):
            rows += [{_PLACE: f"{key}.runs", **run} for run in value["runs"]]
            about[key] = {name: content for name, content in value.items() if name != "runs"}
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    fields = [
        pa.field(name, column.type, metadata=_JSON if is_json else None) for name, (column, is_json) in columns.items()
    ]
    schema = pa.schema(fields, metadata={_ABOUT: json.dumps(about).encode()})
    table = pa.table([column for column, _ in columns.values()], schema=schema)
    with atomic_write(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd", compression_level=19)


def read_table(path: Path) -> dict[str, Any]:
    """Read the summary back, equal but for figures of a run that are None: these are left out."""
    table = pq.read_table(path)
    coded = {field.name for field in table.schema if field.metadata == _JSON}
    runs = [
        {name: json.loads(value) if name in coded else value for name, value in row.items() if value is not None}
        for row in table.to_pylist()
    ]
    summary = json.loads(table.schema.metadata[_ABOUT])
    for run in runs:
        *part, key = run.pop(_PLACE).split(".")
        (summary[part[0]] if part else summary).setdefault(key, []).append(run)
    return summary


def _is_rows(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _column(values: list[Any]) -> tuple[pa.Array, bool]:
    """Make a column, and whether it holds JSON: of all that is not a number, a text or a list of numbers."""
    present = [value for value in values if value is not None]
    if all(_is_plain(value) for value in present) and len({_kind(value) for value in present}) <= 1:
        return pa.array(values), False
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string()), True


def _is_plain(value: object) -> bool:
    numbers = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    return numbers or isinstance(value, (bool, int, float, str))


def _kind(value: object) -> object:
    # Integers and fractions in one column would come back as fractions.
    return (list, *sorted({type(number).__name__ for number in value})) if isinstance(value, list) else type(value)
