"""Commands about data: `data prepare`, `data describe`, `data check`, and `show` for files and datasets."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import warnings
import webbrowser
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    Axis,
    DataDir,
    FileOptions,
    FileType,
    LabelField,
    UnitOfFiles,
    hide_bars_of_datasets,
    json_object,
    option,
    print_note,
    skip_hub_if_offline,
    status,
    use_writable_cache,
    with_groups,
)
from hf_any3d.cli.inputs import Files, Inputs, LeftOutFiles, find_inputs, finish, for_each_file
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Row, check_output, write_results, write_rows
from hf_any3d.hub.names import is_path_like, similar_path
from hf_any3d.many_files.files import Cloud, InputFile
from hf_any3d.registry import DATASETS, FORMATS, LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_BOXES
from hf_any3d.utils.messages import counted, listed, print_line, printable

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.data.tiles import Tile

data = typer.Typer(rich_markup_mode="markdown", help="Prepare, describe and check data.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with a folder of files for each class, Parquet, or the name of a dataset of catalog or hub.",
    ),
]
Options = Annotated[str | None, option('JSON object with options of the dataset, such as {"variant": "obj_bg"}.')]
# Files of boxes beside scans: this package's own, and those of Label Cloud, Datumaro (CVAT) and KITTI.
_BOXES = ("boxes.json", "boxes.parquet", "labels/*.json", "annotations/*.json", "*/ann/*.json", "label_2/*.txt")
_BOXES += ("tracklet_labels.xml",)
# Clouds with fewer points are reported.
_FEW_POINTS = 64
# Scans of a class below which each further one raises the accuracy most.
_FEW_SCANS = 5
# Extents that are more likely millimeters than meters; scans of streets and cities are larger.
_MILLIMETERS = (1000.0, 50_000.0)
# Files of another unit: their largest extents differ from the usual one by this factor, half way from that of objects
# to that of units, among no fewer files.
_OTHER_UNIT, _FEWEST_EXTENTS = 20.0, 4
# Coordinates that are so many times larger than the extent are those of a map.
_MAP_DISTANCE = 20.0
# Files of a folder among which one has to have labels of points, for the folder to be one of labeled points.
_LOOKED_AT = 8
# Near-duplicates that are named.
_MOST_PAIRS = 20


@dataclass(frozen=True)
class FoundDataset:
    """The data that a user named: the name for `load_point_dataset`, and the folder or file, if it is one."""

    name: str
    folder: Path | None = None
    file: Path | None = None

    def load(self, data_dir: str | None = None, **options: Any) -> Any:
        """Load all splits."""
        from hf_any3d.data import load_point_dataset

        if self.file is not None:
            return load_point_dataset("parquet", data_files={"train": str(self.file)}, **options)
        return load_point_dataset(self.name, data_dir=data_dir or self.folder, **options)

    def labels(self) -> str | None:
        """Return whether labels belong to clouds, points, boxes or texts.

        None for data on the hub, and for a folder in which neither folders nor points have a class.
        """
        if self.name == "folder" and self.folder is not None:
            return _labels_of_folder(self.folder)
        # The catalog knows the labels of its datasets; Parquet files are asked for their columns.
        if self.name != "parquet" or not (self.file or self.folder):
            return DATASETS.get(self.name)
        import pyarrow.parquet
        import pyarrow.types

        # All files of a folder have the same columns, so that one of them is enough.
        file = self.file or min(Path(self.folder or "").rglob("*.parquet"))
        try:
            columns = pyarrow.parquet.read_schema(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file}: not Parquet ({error})") from None
        if columns.get_field_index("boxes") >= 0:
            return LABELED_WITH_BOXES
        place = columns.get_field_index("labels")
        # A list belongs to the points of a cloud, a single value to the cloud.
        is_list = place >= 0 and pyarrow.types.is_nested(columns.field(place).type)
        return LABELED_POINTS if is_list else LABELED_CLOUDS


def find_dataset(name: str) -> FoundDataset:
    """Find out what a name of data is, without the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return FoundDataset(_kind_of_folder(path), folder=path)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return FoundDataset("parquet", file=path)
    if name in DATASETS:
        return FoundDataset(name)
    # Whatever looks like a path is not looked for on the hub, whose answer would be about a repository.
    if path.is_file() or is_path_like(name, needs_owner=True):
        raise FileNotFoundError(f"no folder, .parquet file or dataset {name}{_hint_for(name, path)}")
    skip_hub_if_offline()
    return FoundDataset(name)


def _kind_of_folder(path: Path) -> str:
    """Return the dataset of the catalog that reads a folder."""
    # Of the folder itself, or of the splits in it.
    for place in (path, *(path / split for split in ("train", "validation", "test"))):
        for pattern in _BOXES:
            if next(place.glob(pattern), None) is not None:
                return "scans_with_boxes"
    # metadata.parquet describes the clouds of a folder and holds none.
    has_tables = any(file.name != "metadata.parquet" for file in path.rglob("*.parquet"))
    return "parquet" if has_tables else "folder"


def _labels_of_folder(folder: Path) -> str | None:
    """Return whether folders name classes of clouds, or points have them in the files; None if neither do."""
    from hf_any3d.data.catalog.folder_layout import names_classes

    if names_classes(folder):
        return LABELED_CLOUDS
    files = [path for path in sorted(folder.rglob("*")) if path.suffix[1:].lower() in FORMATS]
    # Each point of LAS has a class, so that none of these large files has to be read.
    if any(path.suffix.lower() in (".las", ".laz") for path in files):
        return LABELED_POINTS
    from hf_any3d.data.files import PointCloudError, read_point_cloud

    looked_at = 0
    for path in files:
        if looked_at == _LOOKED_AT:
            break
        # What is wrong with a file is told when it is learned.
        with warnings.catch_warnings(), contextlib.suppress(PointCloudError):
            warnings.simplefilter("ignore")
            cloud = read_point_cloud(path)
            looked_at += 1
            if cloud.labels is not None or cloud.face_labels is not None:
                return LABELED_POINTS
    return None


def _hint_for(name: str, path: Path) -> str:
    """Return what may have been meant by a name that names no data."""
    hint = similar_path(path)
    if hint:
        return hint
    similar = difflib.get_close_matches(name, DATASETS, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return "" if "/" in name else f"; datasets are {', '.join(sorted(DATASETS))}, and owner/name on the hub"


def _load(name: str, data_dir: str | None, options: str | None, **further: Any) -> Any:
    use_writable_cache()
    dataset = find_dataset(name)
    dataset_options = json_object("--options", options)
    # These are options of the loader of folders; Parquet files hold what they hold.
    if dataset.name != "folder":
        further = {}
    hide_bars_of_datasets()
    with status(f"loading {name}"):
        return dataset.load(data_dir, **further, **dataset_options)


@data.command()
def prepare(
    name: Data,
    output: Annotated[Path, option("Folder to write.")],
    points: Annotated[int | None, option("Draw this many points of every file; by default all.", min=1)] = None,
    columns: Annotated[str | None, option("Further columns to read from files: 'colors normals labels'.")] = None,
    data_dir: DataDir = None,
    options: Options = None,
) -> None:
    """Write data as Parquet files with a card, which train, load and push quickly.

    Bad files are left out with a warning, and the exit code is then 2. `hf-any3d train FOLDER` trains on the result,
    `hf-any3d push FOLDER OWNER/NAME` shares it.
    """
    # Files of earlier data beside the new ones would be read as further splits of one dataset.
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; expected a new folder for --output")
    further = {"num_points": points, "columns": (columns or "").replace(",", " ").split(), "on_error": "skip"}
    with LeftOutFiles() as left_out:
        splits = _load(name, data_dir, options, **further)
    from hf_any3d.data.parquet.publishing import card_metadata, card_text, split_statistics
    from hf_any3d.utils.atomic_files import atomic_write, write_json, write_text

    statistics = {}
    for split, rows in splits.items():
        if "points" not in rows.column_names:
            raise ValueError(f"split {split} has no points, but {', '.join(rows.column_names)}")
        # A name by which `datasets` finds the split.
        with atomic_write(output / "data" / f"{split}-00000-of-00001.parquet") as unfinished:
            rows.with_format(None).to_parquet(unfinished)
        statistics[str(split)] = split_statistics(str(split), rows)
        print_line(f"{split}: {counted(len(rows), 'cloud')}")
    title = output.name
    # The splits come from one source, and have its license.
    license = next(iter(splits.values())).info.license or ""
    card = card_metadata(title, license or "unknown", sum(splits.num_rows.values())).to_yaml()
    text = card_text(str(output), title, splits, license, statistics)
    write_text(output / "README.md", f"---\n{card}\n---\n\n{text}\n")
    write_json(output / "meta" / "stats.json", {"splits": statistics})
    print_line(f"{output}: train with hf-any3d train {output}")
    left_out.finish()


@data.command()
def describe(
    name: Data, data_dir: DataDir = None, options: Options = None, as_json: AsJson = False, as_csv: AsCsv = False
) -> None:
    """Describe data: splits, columns, classes, points per cloud, and extent; the exit code is 2 if files are bad."""
    with LeftOutFiles() as left_out:
        splits = _load(name, data_dir, options, on_error="skip")
    from hf_any3d.data.parquet.publishing import split_statistics

    facts = {}
    for split, rows in splits.items():
        facts[str(split)] = {"columns": rows.column_names}
        # A dataset on the hub may be about something else, and a split may have no rows.
        if "points" in rows.column_names and len(rows):
            facts[str(split)] |= split_statistics(str(split), rows)
    counts = []
    # A row of the table for each split, with a column for each label.
    for split, about in facts.items():
        counts.append({"split": split, "clouds": about.get("num_rows", 0), **about.get("labels", {})})
    write_results(facts, counts, None, as_json, as_csv)
    if not as_json and not as_csv:
        for split, about in facts.items():
            _print_split(split, about)
        _print_labels({split: about.get("labels", {}) for split, about in facts.items()})
    left_out.finish()


def _print_split(split: str, about: dict[str, Any]) -> None:
    """Print clouds and columns of a split, with points and extent if it has any."""
    print_line(f"{split}: {counted(about.get('num_rows', 0), 'cloud')}; columns {', '.join(about['columns'])}")
    if "points_per_cloud" not in about:
        return
    least = f"{about['points_per_cloud']['min']:,}"
    most = f"{about['points_per_cloud']['max']:,}"
    low = ", ".join(f"{value:.4g}" for value in about["bounds"]["min"])
    high = ", ".join(f"{value:.4g}" for value in about["bounds"]["max"])
    count = least if least == most else f"{least} to {most}"
    print_line(f"  {count} points each; x, y, z from {low} to {high}")


def _print_labels(by_split: dict[str, dict[str, int]]) -> None:
    """Print how many clouds of each label the splits have."""
    # Labels of the first split in their order, then those that only later splits have.
    labels = list(dict.fromkeys(label for of_split in by_split.values() for label in of_split))
    width = max((len(printable(label)) for label in labels), default=0)
    for label in labels:
        cells = "   ".join(f"{split} {of_split.get(label, 0):>5}" for split, of_split in by_split.items())
        print_line(f"  {printable(label):<{width}}  {cells}")


@data.command()
@with_groups
def check(
    files: Files,
    options: FileOptions,
    unit: UnitOfFiles = None,
    output: Annotated[Path | None, option("Also write a table (.json, .csv).")] = None,
    label_field: LabelField = None,
) -> None:
    """Read every file, and list those that are damaged, doubtful or equal, with the extent of each.

    Doubtful are clouds with invalid points, few points or no extent, those whose coordinates lost their precision, and
    those whose extents are in another unit than the others, or in millimeters. Near-duplicates are named. Bad are
    damaged files, LAS in degrees and clouds of fewer than three points, which training leaves out or refuses, too;
    the exit code is then 2. Folders without a cloud are named.

    Of scans with labels of points or faces, the summary has the classes with their shares, those that only some files
    have, and files without labels; of scans in known units the density and overlaps; and what only some files have.
    """
    inputs = find_inputs(files, options.file_type, label_field)
    for folder in _empty_folders(files):
        print_note(f"{folder}: no point cloud in this folder")
    check_output(output, DATA, as_json=options.as_json, as_csv=options.as_csv)
    from hf_any3d.data.units import TAKEN_FOR_METERS, with_unit

    # What is compared across the files is gathered while each of them is read.
    first_of: dict[str, str] = {}
    samples: dict[str, Any] = {}
    tiles: list[Tile] = []

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        for cloud in clouds:
            cloud.data = with_unit(cloud.data, None if unit is None else unit.value)
        return [_judge(cloud, first_of, samples if inputs.are_many else None, tiles) for cloud in clouds]

    everything = replace(inputs, are_many=True)  # the summary counts a single bad file too
    rows = list(for_each_file(everything, answer))
    # The usual extent is known only once all files are read.
    for row, text in _other_units(rows):
        row.setdefault("warnings", []).append(text)
        print_note(f"warning: {text}")
    write_rows(rows, _cells, output, options)
    if not options.as_json and not options.as_csv:
        _print_summary(rows, tiles, samples)
        scarce = _scarce_classes(files, [row["file"] for row in rows if "error" not in row])
        if scarce is not None:
            print_line(scarce)
    elif any(tile.is_taken_for_meters for tile in tiles):
        print_note(f"warning: {TAKEN_FOR_METERS}")
    finish(rows)


def _print_summary(rows: list[dict[str, Any]], tiles: list[Tile], samples: dict[str, Any]) -> None:
    """Print how many files are bad or doubtful, what tiles have, and which files are near-duplicates."""
    from hf_any3d.data.tiles import describe_tiles

    counts = Counter(_verdict(row) for row in rows)
    total = sum(row.get("points", 0) for row in rows)
    shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("good", "doubtful", "bad"))
    print_line(f"{counted(len(rows), 'file')}: {shown}; {total:,} points")
    for line in describe_tiles(tiles):
        print_line(line)
    if len(samples) > 1:
        _print_near_duplicates(samples)


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return "bad"
    return "doubtful" if "warnings" in row else "good"


def _print_near_duplicates(samples: dict[str, Any]) -> None:
    import torch

    from hf_any3d.training.few_scans.scans import MOST_COMPARED, near_duplicates

    # Each pair is compared, so that more of them would take minutes.
    names = list(samples)[:MOST_COMPARED]
    pairs = near_duplicates(torch.stack([samples[name] for name in names]))
    if not pairs:
        return
    named = [f"{names[first]} and {names[second]}" for first, second in pairs]
    print_line(f"near-duplicates: {listed(named, _MOST_PAIRS, '; ')}")


def _cells(row: Row) -> Iterator[Row]:
    # The warnings of a file before the error that made it unusable.
    notes = "; ".join([*row.get("warnings", ()), *([row["error"]] if "error" in row else [])])
    extent = " x ".join(f"{size:g}" for size in row.get("extent", ()))
    yield {"file": row["file"], "points": row.get("points"), "extent": extent, "problems": notes}


def _judge(
    cloud: Cloud, first_of: dict[str, str], samples: dict[str, Any] | None, tiles: list[Tile]
) -> dict[str, Any]:
    """Return the row of a cloud, and add what is doubtful about it to its warnings.

    The cloud is added to `first_of`, the first file with the same points by their checksum, to `samples`, among which
    near-duplicates are looked for, None for a single file, and to `tiles`, which are described together.
    """
    from hf_any3d.data.tiles import tile_of
    from hf_any3d.data.units import check_projected

    data = cloud.data
    points = cloud.data.points
    # What training would leave out is bad here, too.
    try:
        data.check_usable()
        # Of formats of scanners and maps it is known that they would be measured in meters.
        if data.up_axis == "z":
            check_projected(data)
    except ValueError as error:
        return {"error": f"{cloud.name}: {error}"}
    doubts = []
    # The points, not the file: the same cloud may be stored in two formats.
    digest = hashlib.sha256(np.ascontiguousarray(points).tobytes()).hexdigest()
    if (first := first_of.setdefault(digest, cloud.name)) != cloud.name:
        doubts.append(f"the same points as {first}")
    elif samples is not None:
        from hf_any3d.training.few_scans.scans import sample_of

        # None of a cloud that is too small to be sampled, which is then compared by its checksum alone.
        if (sample := sample_of(data)) is not None:
            samples[cloud.name] = sample
    # A mesh may have a large surface with few vertices.
    if len(points) < _FEW_POINTS and not data.is_mesh:
        doubts.append(f"{len(points)} points are few")
    extent = points.max(axis=0) - points.min(axis=0)
    if not extent.any():
        doubts.append("all points are equal")
    cloud.warnings += [f"{cloud.name}: {text}" for text in (*doubts, *doubts_about(data))]
    has = [name for name in ("colors", "normals", "labels", "faces", "face_labels") if getattr(data, name) is not None]
    tile = tile_of(cloud.name, data)
    tiles.append(tile)
    row = {"points": len(points), "extent": [round(float(size), 6) for size in extent], "has": has}
    # For --json alone; the table has file, points, extent and problems.
    row |= {"low": list(tile.low), "high": list(tile.high), "meters_per_unit": tile.meters_per_unit}
    return row | {"points_per_square_meter": tile.density, "labels": tile.labels}


def _other_units(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Find files whose extent differs from the usual one of all by about the factor of a unit.

    Sizes are compared in meters where a file says its unit, and as they are where it does not.
    """
    # Damaged files have no extent, and clouds of equal points have none that could be compared.
    measured = [row for row in rows if max(row.get("extent", [0])) > 0]
    if len(measured) < _FEWEST_EXTENTS:
        return
    sizes = [max(row["extent"]) * (row.get("meters_per_unit") or 1.0) for row in measured]
    # The middle one, which a few files of another unit do not move.
    usual = sorted(sizes)[len(sizes) // 2]
    all_known = all(row.get("meters_per_unit") is not None for row in measured)
    for row, size in zip(measured, sizes, strict=True):
        if usual / _OTHER_UNIT < size < usual * _OTHER_UNIT:
            continue
        times, than = (usual / size, "smaller") if size < usual else (size / usual, "larger")
        times = f"{float(f'{times:.1g}'):,.0f}"  # one digit is enough
        unit, why = (" m", "") if all_known else ("", ": in another unit?")
        text = f"the largest extent is {size:g}{unit}, about {times} times {than} than the usual {usual:g}{unit}"
        yield row, f"{row['file']}: {text}{why}"


def _scarce_classes(words: list[str], good: list[str]) -> str | None:
    """Say which classes of a folder need more scans; None if its files are in no folders of classes."""
    if len(words) != 1 or not Path(words[0]).is_dir():
        return None
    from hf_any3d.data.catalog.folder_layout import SPLIT_NAMES

    # The class is the folder nearest to a file that is not that of a split.
    folders = [Path(name).relative_to(words[0]).parts[:-1] for name in good]
    owned = [[name for name in parts if name.lower() not in SPLIT_NAMES] for parts in folders]
    counts = Counter(names[-1] for names in owned if names)
    # Files of a single folder are not sorted by class.
    if len(counts) < 2:
        return None
    usual = float(np.median(list(counts.values())))
    # Few in number, or few beside the others: less than half of what is usual here.
    scarce = sorted(
        (name for name in counts if counts[name] < max(_FEW_SCANS, usual / 2)), key=lambda name: counts[name]
    )
    least = min(counts.values())
    most = max(counts.values())
    said = f"{len(counts)} classes, {least if least == most else f'{least} to {most}'} scans each"
    if not scarce:
        return said
    named = listed([f"{printable(name)} ({counts[name]})" for name in scarce])
    return f"{said}; more scans would help {named} most"


def doubts_about(cloud: PointCloudData) -> list[str]:
    """Describe what is doubtful about the coordinates of a cloud: their precision and their unit.

    A coordinate stored in float32 far from the origin, such as one of a map projection, has steps: a cloud then
    consists of planes. Objects and rooms in millimeters have extents of thousands; formats of scanners and coordinates
    of maps are in meters or feet.
    """
    from hf_any3d.data.units import why_not_projected

    points = cloud.points
    why = why_not_projected(cloud)
    doubts = [] if why is None else [why]
    size = float((points.max(axis=0) - points.min(axis=0)).max())
    # Axis by axis: heights are small even where the other coordinates are those of a map.
    for axis, values in zip("xyz", points.T, strict=True):
        extent = float(values.max() - values.min())
        distinct = len(np.unique(values))
        # The distance between neighboring float32 numbers grows with their size: at map coordinates it is decimeters.
        step = float(np.spacing(np.float32(np.abs(values).max())))
        # Few different values alone may be floors, and coarse steps alone be spread over a large extent.
        if len(values) >= _FEW_POINTS and extent > 0 and distinct <= len(values) / 4 and step > extent / 1000:
            doubts.append(
                f"{axis} has {distinct} different values in {len(values)} points, with steps of {step:g}: too far "
                "from the origin for its precision; subtract an offset before it is stored"
            )
    # Formats that know an up axis or an offset are those of scanners and maps, which are not in millimeters.
    of_map = cloud.up_axis is not None or cloud.offset is not None or np.abs(points).max() > _MAP_DISTANCE * size
    of_map |= cloud.meters_per_unit is not None
    if _MILLIMETERS[0] <= size <= _MILLIMETERS[1] and not of_map:
        doubts.append(f"the largest extent is {size:g}: millimeters, if this is an object or a room")
    return doubts


def _empty_folders(words: list[str]) -> Iterator[Path]:
    """Yield the folders below those given that hold no readable file, at any depth."""
    # Endings as the suffix of a path has them.
    types = {f".{name}" for name in FORMATS}
    for root in (Path(word) for word in words if word != "-"):
        for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
            is_hidden = any(part.startswith(".") for part in folder.parts)
            if not is_hidden and not any(file.suffix.lower() in types for file in folder.rglob("*")):
                yield folder


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|DATASET",
            help="Point files, meshes, folders or globs; - for standard input; or a dataset: Parquet, or a name.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="A page (.html), a picture (.png), or the points of one file (.ply, .obj, .npz).")
    ] = Path("show.html"),
    most: Annotated[int, typer.Option("--most", min=1, max=60, help="Clouds to show, spread over the data.")] = 24,
    split: Annotated[str | None, option("Split of a dataset; by default its first.")] = None,
    columns: Annotated[int, typer.Option(min=1, help="Clouds in a row.")] = 4,
    up_axis: Annotated[
        Axis | None,
        option("Axis that points up: x, y or z; by default z for LAS, E57, PTX, 3MF, .bin and S3DIS, else y."),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve all points of one large file until Ctrl-C.")] = False,
    data_dir: DataDir = None,
    file_type: FileType = None,
) -> None:
    """Show clouds of files or of a dataset on a page that turns them, or in a picture.

    The page is one file that works without the network, and colors points by label, as in the file, by intensity, or
    by height. Numbered things of LAS and LAZ (PredInstance) have a color each, and are named under the pointer.
    """
    rows = None if serve else _rows_of_dataset(what, split, data_dir)
    inputs = Inputs([], False) if rows is not None else find_inputs(what, file_type)
    suffix = check_output(output, VIEWS if rows is not None else (*VIEWS, *CLOUDS), num_files=len(inputs))
    if serve:
        _serve(inputs)
        return
    with status("preparing the page"):
        from hf_any3d.visualization.show import write_views

    if suffix in CLOUDS:
        rows_of_files = _write_points(inputs, output)
        _tell(output, browser)
        finish(rows_of_files)
        return
    page = _view_files(inputs, most) if rows is None else _view_rows(rows, most, what[0])
    # The command line wins, then the dataset, then what the file of a cloud says.
    for view in page.views:
        view.up_axis = up_axis or page.up_axis or view.up_axis
    # Without a view no file could be read, which `finish` tells.
    if page.views:
        write_views(output, page.views, title=", ".join(what), columns=columns, **page.settings)
        _tell(output, browser)
    finish(page.rows)


def _tell(output: Path, browser: bool) -> None:
    print_line(output)
    if browser:
        webbrowser.open(output.absolute().as_uri())


def _serve(inputs: Inputs) -> None:
    """Serve all points of one file until Ctrl-C."""
    from hf_any3d.visualization.show import class_colors, class_names, serve_scene

    # A page in the browser holds one scene, whose points are sent in full.
    if len(inputs) != 1:
        raise ValueError(f"--serve: {len(inputs)} files; expected one")
    cloud = inputs.files[0].read()
    named = class_names(cloud.data)
    server = serve_scene(cloud.data, names=named, palette=None if named is None else class_colors(named))
    print_line(f"open http://127.0.0.1:{server.get_port()} in a browser; Ctrl-C stops")
    server.sleep_forever()


@dataclass(frozen=True)
class _Page:
    """Views of clouds, with the settings that they share."""

    views: list[Any]
    settings: dict[str, Any]  # arguments of `write_views`
    up_axis: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # of files, those that could not be read among them


def _view_rows(rows: Any, most: int, dataset: str) -> _Page:
    """Return views of some rows of a dataset."""
    from hf_any3d.data.catalog import up_axis_of
    from hf_any3d.visualization.show import views_of_rows

    views, settings = views_of_rows(rows, most)
    return _Page(views, settings, up_axis=up_axis_of(dataset))


def _view_files(inputs: Inputs, most: int) -> _Page:
    """Return views of some files."""
    from hf_any3d.visualization.show import class_colors, class_names, share_legend, view_of_cloud

    views: list[Any] = []
    names_of_views: list[list[str]] = []
    titles = inputs.titles()
    # .laz is compressed .las, with the same classes.
    formats = {Path(file.name).suffix.lower().replace(".laz", ".las") for file in inputs.files}

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        for cloud in clouds:
            # The page has one legend: where formats are mixed, numbers mean different classes.
            named = class_names(cloud.data) if len(formats) == 1 else None
            view, labels = view_of_cloud(cloud.data, title=titles[cloud.name], names=named)
            views.append(view)
            names_of_views.append(labels)
        # Showing gives no answer, but a row is where errors and warnings stand.
        return [{} for _ in clouds]

    # Spread over all files, which are sorted by folder and so by class.
    chosen = np.unique(np.linspace(0, len(inputs) - 1, min(most, len(inputs))).astype(int))
    files = [_with_things(inputs.files[index]) for index in chosen]
    rows = list(for_each_file(replace(inputs, files=files), answer))
    names = share_legend(views, names_of_views)
    # Points are colored by label in all clouds or in none.
    if any(view.labels is None for view in views):
        names = []
        for view in views:
            view.labels = None
    settings: dict[str, Any] = {"names": names, "note": counted(len(views), "cloud"), "value_name": "intensity"}
    if names and formats == {".las"}:
        settings["palette"] = class_colors(names)
    return _Page(views, settings, rows=rows)


def _with_things(file: InputFile) -> InputFile:
    """Return a file with the columns about numbered things that it has, which only LAS and LAZ say beforehand."""
    from hf_any3d.data.files.las import extra_dimensions_of
    from hf_any3d.visualization.things import HEIGHTS, NUMBERS

    if file.data is not None or not Path(file.name).is_file():
        return file
    there = extra_dimensions_of(file.name)
    if NUMBERS not in there:
        return file
    return replace(file, columns=tuple(name for name in (NUMBERS, HEIGHTS) if name in there))


def _write_points(inputs: Inputs, output: Path) -> list[dict[str, Any]]:
    """Write the points of the one file, and return its row."""
    from hf_any3d.data.files import write_point_cloud

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        for cloud in clouds:
            write_point_cloud(output, cloud.data)
        return [{} for _ in clouds]

    return list(for_each_file(inputs, answer))


def _rows_of_dataset(what: list[str], split: str | None, data_dir: str | None) -> Any:
    """Return the rows of a split if the words name a dataset, else None."""
    name = what[0]
    path = Path(name)
    is_parquet = path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet")))
    is_name = name in DATASETS or (name.count("/") == 1 and not Path(name.partition("/")[0]).exists())
    # A pattern of files is no name; of `owner/name`, a folder `owner` here makes it a path.
    if len(what) > 1 or not (is_parquet or (is_name and not path.exists() and not set("*?[") & set(name))):
        return None
    splits = _load(name, data_dir, None)
    if split is not None and split not in splits:
        raise ValueError(f"--split is {split!r}; {name} has {', '.join(map(str, splits))}")
    rows = splits[split or next(iter(splits))]
    if "points" not in rows.column_names or not len(rows):
        raise ValueError(f"{name}: no points to show, but {', '.join(rows.column_names)}")
    return rows
