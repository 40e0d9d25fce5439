"""Commands about data: `data prepare`, `data describe`, `data check`, and `show` for files and datasets."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.caches import use_writable_cache
from hf_any3d.cli.errors import print_note
from hf_any3d.cli.inputs import Files, Inputs, LeftOutFiles, find_inputs, finish, for_each_file
from hf_any3d.cli.options import (
    AsCsv,
    AsJson,
    Axis,
    DataDir,
    FileOptions,
    FileType,
    LabelField,
    UnitOfFiles,
    json_object,
    option,
    output_option,
    with_groups,
)
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Row, check_output, write_results, write_rows
from hf_any3d.cli.progress import hide_bars_of_datasets, status
from hf_any3d.data.dataset_names import find_dataset, names_dataset
from hf_any3d.data.files.input_files import Cloud
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.utils.messages import counted, listed, print_line, printable

if TYPE_CHECKING:
    from hf_any3d.data.checks.clouds import Checks
    from hf_any3d.data.files import PointCloudData

data = typer.Typer(rich_markup_mode="markdown", help="Prepare, describe, check and show data.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one subfolder of files per class, Parquet files, or the name of a dataset in the "
        "catalog or on the Hub.",
    ),
]
Options = Annotated[str | None, option('JSON object with dataset options, such as {"variant": "obj_bg"}.')]


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
    output: Annotated[Path, output_option("Output folder.")],
    points: Annotated[
        int | None, option("Sample this many points from each file; by default keep all.", min=1)
    ] = None,
    columns: Annotated[str | None, option("Additional columns to read, such as 'colors normals labels'.")] = None,
    data_dir: DataDir = None,
    options: Options = None,
) -> None:
    """Convert data to Parquet files with a dataset card, which load, train and upload faster.

    Skips unreadable files with a warning, and then exits with code 2. Train on the result with
    `hf-any3d train FOLDER`, share it with `hf-any3d push FOLDER OWNER/NAME`.
    """
    # Files of earlier data beside the new ones would be read as further splits of one dataset.
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; give a new folder as --output")
    further = {"num_points": points, "columns": (columns or "").replace(",", " ").split(), "on_error": "skip"}
    with LeftOutFiles() as left_out:
        splits = _load(name, data_dir, options, **further)
    from hf_any3d.data.parquet.publishing import write_point_dataset

    write_point_dataset(splits, output)
    for split, rows in splits.items():
        print_line(f"{split}: {counted(len(rows), 'cloud')}")
    print_line(f"{output}: train with hf-any3d train {output}")
    left_out.finish()


@data.command()
def describe(
    name: Data, data_dir: DataDir = None, options: Options = None, as_json: AsJson = False, as_csv: AsCsv = False
) -> None:
    """Describe data: splits, columns, classes, points per cloud and extent. Exits with 2 if any file is unreadable."""
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
            print_line(f"{split}: {counted(about.get('num_rows', 0), 'cloud')}; columns {', '.join(about['columns'])}")
            if "points_per_cloud" in about:
                least = f"{about['points_per_cloud']['min']:,}"
                most = f"{about['points_per_cloud']['max']:,}"
                low = ", ".join(f"{value:.4g}" for value in about["bounds"]["min"])
                high = ", ".join(f"{value:.4g}" for value in about["bounds"]["max"])
                count = least if least == most else f"{least} to {most}"
                print_line(f"  {count} points each; x, y, z from {low} to {high}")
        # Labels of the first split in their order, then those that only later splits have.
        by_split = {split: about.get("labels", {}) for split, about in facts.items()}
        labels = list(dict.fromkeys(label for of_split in by_split.values() for label in of_split))
        width = max((len(printable(label)) for label in labels), default=0)
        for label in labels:
            cells = "   ".join(f"{split} {of_split.get(label, 0):>5}" for split, of_split in by_split.items())
            print_line(f"  {printable(label):<{width}}  {cells}")
    left_out.finish()


@data.command()
@with_groups
def check(
    files: Files,
    options: FileOptions,
    unit: UnitOfFiles = None,
    output: Annotated[Path | None, output_option("Also write a table (.json, .csv).")] = None,
    label_field: LabelField = None,
) -> None:
    """Read every file, print its extent, and report bad, doubtful and duplicate files.

    Doubtful: invalid points, very few points, no extent, coordinates with lost precision, or an extent that suggests
    millimeters or a different unit than the other files. Data that is not read, such as a texture, is reported once
    and is not a reason for doubt. Bad: damaged files, LAS in degrees, and fewer than three points; training skips or
    rejects these too, and the exit code is 2. Also lists near-duplicates and folders without point clouds.

    For labeled points or faces, the summary shows the share of each class, classes that only some files have, and
    files without labels. For scans with a known unit, it shows point density and overlaps. It also lists attributes
    that only some files have.
    """
    from hf_any3d.data.checks.clouds import (
        Checks,
        classes_of_folder,
        describe_classes,
        empty_folders,
        names_for_one_class,
    )
    from hf_any3d.data.frames.units import TAKEN_FOR_METERS

    inputs = find_inputs(files, options.file_type, label_field)
    for word in files:
        for folder in empty_folders(Path(word)) if word != "-" else ():
            print_note(f"{folder}: no point cloud in this folder")
    check_output(output, DATA, as_json=options.as_json, as_csv=options.as_csv)
    checks = Checks(None if unit is None else unit.value, compare=inputs.are_many)
    everything = replace(inputs, are_many=True)  # the summary counts a single bad file too
    rows = list(for_each_file(everything, checks.answer))
    for text in checks.compare_sizes(rows):
        print_note(f"warning: {text}")
    classes = {}
    if len(files) == 1 and Path(files[0]).is_dir():
        classes = classes_of_folder(Path(files[0]), [row["file"] for row in rows if "error" not in row])
    for text in names_for_one_class(classes):
        print_note(f"warning: {files[0]}: {text}, as train refuses them")
    write_rows(rows, _cells, output, options)
    if not options.as_json and not options.as_csv:
        _print_summary(rows, checks)
        if classes:
            print_line(describe_classes(classes))
    elif checks.any_taken_for_meters:
        print_note(f"warning: {TAKEN_FOR_METERS}")
    finish(rows)


def _print_summary(rows: list[dict[str, Any]], checks: Checks) -> None:
    """Print how many files are bad or doubtful, what tiles have, and which files are near-duplicates."""
    from hf_any3d.data.checks.clouds import count_verdicts
    from hf_any3d.data.checks.tiles import describe_tiles

    total = sum(row.get("points", 0) for row in rows)
    shown = ", ".join(f"{count} {verdict}" for verdict, count in count_verdicts(rows).items())
    print_line(f"{counted(len(rows), 'file')}: {shown}; {total:,} points")
    for line in describe_tiles(checks.tiles):
        print_line(line)
    pairs = checks.near_duplicates()
    if pairs:
        from hf_any3d.data.checks.near_duplicates import copies_in_words

        print_line(copies_in_words(len(pairs), pairs))


def _cells(row: Row) -> Iterator[Row]:
    from hf_any3d.data.checks.clouds import doubts_of

    # The warnings of a file before the error that made it unusable.
    notes = "; ".join([*doubts_of(row), *([row["error"]] if "error" in row else [])])
    extent = " x ".join(f"{size:g}" for size in row.get("extent", ()))
    yield {"file": row["file"], "points": row.get("points"), "extent": extent, "problems": notes}


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|DATASET",
            help="Point clouds, meshes, folders or globs; - for standard input; or a dataset: Parquet files or "
            "a name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="HTML page (.html), image (.png), or the points of one file (.ply, .obj, .npz).", writable=True
        ),
    ] = Path("show.html"),
    most: Annotated[
        int, typer.Option("--most", min=1, max=60, help="Number of point clouds to show, spread evenly over the data.")
    ] = 24,
    split: Annotated[str | None, option("Split of a dataset; by default the first one.")] = None,
    columns: Annotated[int, typer.Option(min=1, help="Point clouds per row.")] = 4,
    up_axis: Annotated[
        Axis | None,
        option(
            "Up axis: x, y or z; by default as the file or data set states it, z for LAS, E57, PTX, 3MF, .bin and "
            "S3DIS, else as an object looks, else y."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve all points of one large file on localhost until Ctrl-C.")
    ] = False,
    data_dir: DataDir = None,
    file_type: FileType = None,
) -> None:
    """Show point clouds from files or a dataset in an interactive 3D page or an image.

    The page is a single file that works offline. You can color points by label, by their own color, by intensity or by
    height. Numbered objects in LAS and LAZ (PredInstance) each get a color; hover over one to see its name.
    """
    rows = None if serve else _rows_of_dataset(what, split, data_dir)
    inputs = Inputs([], False) if rows is not None else find_inputs(what, file_type)
    suffix = check_output(output, VIEWS if rows is not None else (*VIEWS, *CLOUDS), num_files=len(inputs))
    if serve:
        from hf_any3d.visualization.show import class_colors, class_names, serve_scene

        # A page in the browser holds one scene, whose points are sent in full.
        if len(inputs) != 1:
            raise ValueError(f"--serve takes one file; {len(inputs)} were given")
        cloud = inputs.files[0].read()
        named = class_names(cloud.data)
        server = serve_scene(cloud.data, names=named, palette=None if named is None else class_colors(named))
        print_line(f"open http://127.0.0.1:{server.get_port()} in a browser; Ctrl-C stops")
        server.sleep_forever()
        return
    with status("preparing the page"):
        from hf_any3d.visualization.show import write_views

    if suffix in CLOUDS:
        from hf_any3d.data.files import write_point_cloud

        def write(clouds: list[Cloud]) -> list[dict[str, Any]]:
            for cloud in clouds:
                write_point_cloud(output, cloud.data)
            return [{} for _ in clouds]

        rows_of_files = list(for_each_file(inputs, write))
        _tell(output, browser)
        finish(rows_of_files)
        return
    if rows is None:
        page = _view_files(inputs, most, find_up_axis=up_axis is None)
    else:
        from hf_any3d.data.catalog import up_axis_of
        from hf_any3d.visualization.show import views_of_rows

        page = _Page(*views_of_rows(rows, most), up_axis=up_axis_of(what[0]))
    # The command line wins, then the dataset, then what the file of a cloud says.
    for view in page.views:
        view.up_axis = up_axis or page.up_axis or view.up_axis
    # Without a view no file could be read, which `finish` tells.
    if page.views:
        # Names without their folders, as a page may be shared
        title = listed([Path(word).name or word for word in what], most=3)
        write_views(output, page.views, title=title, columns=columns, **page.settings)
        _tell(output, browser)
    finish(page.rows)


def _tell(output: Path, browser: bool) -> None:
    print_line(output)
    if browser:
        webbrowser.open(output.absolute().as_uri())


@dataclass(frozen=True)
class _Page:
    """Views of clouds, with the settings that they share."""

    views: list[Any]
    settings: dict[str, Any]  # arguments of `write_views`
    up_axis: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # of files, those that could not be read among them


def _view_files(inputs: Inputs, most: int, *, find_up_axis: bool) -> _Page:
    """Return views of some files; with `find_up_axis` objects stand as they look upright, unless files state it."""
    from hf_any3d.data.files.las import extra_dimensions_of
    from hf_any3d.visualization.show import class_colors, class_names, share_legend, view_of_cloud
    from hf_any3d.visualization.things import COLUMNS, NUMBERS

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
            if find_up_axis and cloud.data.up_axis is None:
                _stand_upright(view, cloud.data)
            views.append(view)
            names_of_views.append(labels)
        # Showing gives no answer, but a row is where errors and warnings stand.
        return [{} for _ in clouds]

    # Spread over all files, which are sorted by folder and so by class.
    chosen = np.unique(np.linspace(0, len(inputs) - 1, min(most, len(inputs))).astype(int))
    files = []
    for index in chosen:
        file = inputs.files[index]
        # Which columns about numbered things a file has, LAS and LAZ alone say beforehand.
        if file.data is None and Path(file.name).is_file():
            there = extra_dimensions_of(file.name)
            if NUMBERS in there:
                file = replace(file, columns=tuple(name for name in COLUMNS if name in there))
        files.append(file)
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


def _stand_upright(view: Any, data: PointCloudData) -> None:
    """Turn a view of a single object as it looks upright, and tell so below it; others stay."""
    from hf_any3d.data.checks.single_objects import why_no_object

    if any(why_no_object(data, axis) is not None for axis in "xyz"):
        return
    from hf_any3d.tasks.poses import direction_of_object

    direction = direction_of_object(view.points)
    if direction is None or direction == "y":
        return
    view.up_axis = direction.removeprefix("-")
    view.points = turn_up_axis(view.points, direction, view.up_axis)
    view.note += f" · up: {direction}, as it looks"


def _rows_of_dataset(what: list[str], split: str | None, data_dir: str | None) -> Any:
    """Return the rows of a split if the words name a dataset, else None."""
    name = what[0]
    if len(what) > 1 or not names_dataset(name):
        return None
    splits = _load(name, data_dir, None)
    if split is not None and split not in splits:
        raise ValueError(f"--split is {split!r}; {name} has {', '.join(map(str, splits))}")
    rows = splits[split or next(iter(splits))]
    if "points" not in rows.column_names or not len(rows):
        raise ValueError(f"{name}: no points to show, but {', '.join(rows.column_names)}")
    return rows
