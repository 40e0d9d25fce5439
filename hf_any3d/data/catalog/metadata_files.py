"""Tables that lie beside files and say more about them: metadata.csv, .jsonl or .parquet, as imagefolder has them."""

import json
import os
import posixpath
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from datasets import Features

from hf_any3d.data.catalog.layout import check_link, check_name
from hf_any3d.data.files import ReadLimits

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def read_metadata(root: Path, *, follow_links: bool = False) -> pa.Table | None:
    """Read all metadata files below a folder.

    Args:
        root: the folder.
        follow_links: read files too that are links to somewhere outside of the folder.

    Returns:
        Their rows one below the other, with the column `file_name` relative to `root`; None if there is no such file.

    Raises:
        ValueError: a file that cannot be read, lacks `file_name`, has other columns than the others, names a file
            outside its own folder, or one that is named already; files of several types; a link that leads outside.
    """
    # A pattern with a wildcard: a plain name would pass over a link that leads nowhere.
    files = [path for path in root.rglob("metadata.*") if path.name in METADATA_NAMES and not _is_hidden(path, root)]
    files = [path for path in files if not path.is_dir()]
    files.sort(key=lambda path: (len(path.parts), path))  # from the outermost inwards
    if not files:
        return None
    if len({path.suffix for path in files}) > 1:
        names = ", ".join(sorted({path.name for path in files}))
        raise ValueError(f"{root}: there are {names}; expected metadata files of one type")
    tables, seen = [], {}
    for path in files:
        check_name(path.relative_to(root).as_posix(), root)
        if not follow_links:
            check_link(path, root)
        table = _read(path)
        if tables and table.column_names != tables[0].column_names:
            table = _in_order_of(table, tables[0], path, files[0])
        names = []
        for number, name in enumerate(table.column(FILE_NAME).to_pylist(), start=1):
            name = _relative_to_root(name, path, number, root)
            if name in seen:
                raise ValueError(f"{path}: row {number} names {name} a second time; {seen[name]} names it already")
            seen[name] = f"row {number} of {path.relative_to(root).as_posix()}"
            names.append(name)
        place = table.column_names.index(FILE_NAME)
        tables.append(table.set_column(place, FILE_NAME, pa.array(names, pa.string())))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{root}: the metadata files have columns of different types ({error})") from None


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read(path: Path) -> pa.Table:
    try:
        table = _READERS[path.suffix](path)
        table.validate(full=True)  # Parquet hands over damaged text as it is
        Features.from_arrow_schema(table.schema)  # a description of the columns may be damaged too
    # Damaged tables fail in many ways, in pandas, json and Arrow, whose errors can be OSErrors without a number.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: cannot be read as a table ({type(error).__name__}: {error})") from None
    for name in table.column_names:
        if "\0" in name:  # Arrow would cut it off there
            raise ValueError(f"{path}: a column is named {name!r}; expected a name without the character 0")
    if FILE_NAME not in table.column_names:
        raise ValueError(f"{path}: no column {FILE_NAME!r}; there are {', '.join(table.column_names) or 'none'}")
    kind = table.schema.field(FILE_NAME).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{path}: {FILE_NAME} has type {kind}; expected text")
    return table


def _read_csv(path: Path) -> pa.Table:
    return pa.Table.from_pandas(
        pd.read_csv(path, dtype={FILE_NAME: str}), preserve_index=False
    ).replace_schema_metadata()


def _read_jsonl(path: Path) -> pa.Table:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is {line.strip()[:40]!r}; expected an object")
                rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _read_parquet(path: Path) -> pa.Table:
    # A column of one value takes a few bytes however many rows it has.
    table = pyarrow.parquet.read_metadata(path)
    ReadLimits.current().check(decoded=8 * table.num_rows * table.num_columns, stored=path.stat().st_size)
    return pyarrow.parquet.read_table(path)


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _in_order_of(table: pa.Table, first: pa.Table, path: Path, first_path: Path) -> pa.Table:
    if set(table.column_names) != set(first.column_names):
        raise ValueError(
            f"{path}: the columns are {', '.join(table.column_names)}, those of {first_path} "
            f"{', '.join(first.column_names)}; expected the same"
        )
    return table.select(first.column_names)


def _relative_to_root(name: str | None, path: Path, number: int, root: Path) -> str:
    if not name:
        raise ValueError(f"{path}: row {number} has no {FILE_NAME}")
    relative = posixpath.normpath(name.replace("\\", "/"))
    # Such a path could reach any file of this machine, or the network.
    if "://" in name or os.path.isabs(name) or posixpath.isabs(relative) or relative.split("/")[0] == "..":
        raise ValueError(f"{path}: row {number} names {name!r}; expected a path inside the folder of this file")
    folder = path.parent.relative_to(root).as_posix()
    return posixpath.normpath(posixpath.join(folder, relative))
