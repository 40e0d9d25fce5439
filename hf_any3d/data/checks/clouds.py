"""Check clouds before they are learned: damaged, doubtful and equal ones, other units, and classes with few scans."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.data.checks.tiles import Tile, tile_of
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.input_files import Cloud
from hf_any3d.data.files.source import LEFT_OUT
from hf_any3d.data.frames.far_points import find_far_points, without_far_points
from hf_any3d.data.frames.units import check_projected, why_not_projected, with_unit
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import listed, printable

if TYPE_CHECKING:
    import torch

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
# Columns that a cloud may have besides its points.
_COLUMNS = ("colors", "normals", "labels", "faces", "face_labels")


@dataclass(frozen=True)
class CheckedCloud:
    """Facts about a cloud that can be learned.

    Attributes:
        tile: Its bounds, unit, density and labels.
        points: Number of its points.
        extent: Size along x, y and z, in the units of the file.
        has: Names of its columns besides the points.
        doubts: What is doubtful about it, without its name.
    """

    tile: Tile
    points: int
    extent: tuple[float, float, float]
    has: tuple[str, ...]
    doubts: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return all but the doubts as plain values, by the names of columns of a table."""
        tile = self.tile
        row = {"points": self.points, "extent": list(self.extent), "has": list(self.has)}
        row |= {"low": list(tile.low), "high": list(tile.high), "meters_per_unit": tile.meters_per_unit}
        row |= {"points_per_square_meter": tile.density, "labels": tile.labels}
        return row | {"left_out": dict(tile.left_out)}


class Checks:
    """Checks of clouds, one after the other, none of which is kept; afterwards of what they have in common.

    Args:
        unit: The unit of clouds whose files say none, one of `LENGTHS`.
        compare: Whether near-duplicates are looked for, for which a few points of each cloud are kept.
    """

    def __init__(self, unit: str | None = None, *, compare: bool = True):
        self.unit = unit
        self.compare = compare
        self.clouds: list[CheckedCloud] = []
        self._first_of: dict[str, str] = {}
        self._equal: list[tuple[str, str]] = []
        self._samples: dict[str, torch.Tensor] = {}

    @property
    def tiles(self) -> list[Tile]:
        """The tiles of the clouds, which `hf_any3d.data.checks.tiles.describe_tiles` describes."""
        return [cloud.tile for cloud in self.clouds]

    @property
    def any_taken_for_meters(self) -> bool:
        """True if the unit of some file is unknown and assumed to be meters."""
        return any(tile.is_taken_for_meters for tile in self.tiles)

    def answer(self, clouds: list[Cloud]) -> list[dict[str, Any]]:
        """Check the clouds of files, and return a row for each, as `answer_files` takes it.

        Doubts become warnings of the file. What training would leave out or refuse is an error.
        """
        rows = []
        for cloud in clouds:
            data = with_unit(cloud.data, self.unit)
            try:
                checked = self.add(cloud.name, data)
            except ValueError as error:
                rows.append({"error": f"{cloud.name}: {error}"})
                continue
            cloud.warnings += [f"{cloud.name}: {text}" for text in checked.doubts]
            rows.append(checked.plain())
        return rows

    def compare_sizes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Find clouds in another unit than the others, once all are checked, and add a warning to the row of each.

        Args:
            rows: The rows of all files, those that could not be read among them.

        Returns:
            The warnings, which name the files.
        """
        good = [row for row in rows if "error" not in row]
        found = []
        for number, text in self.other_units():
            text = f"{good[number]['file']}: {text}"
            good[number].setdefault("warnings", []).append(text)
            found.append(text)
        return found

    def add(self, name: str, cloud: PointCloudData) -> CheckedCloud:
        """Check a cloud.

        Raises:
            ValueError: Training would leave it out or refuse it: fewer than three points, or degrees for meters.
        """
        points = cloud.points
        cloud.check_usable()
        # Of formats of scanners and maps it is known that they would be measured in meters.
        if cloud.up_axis == "z":
            check_projected(cloud)
        doubts = []
        far = find_far_points(cloud) if is_place(cloud) else None
        if far is not None:
            doubts.append(f"{far}; commands for tiles treat them as noise")
            cloud = without_far_points(cloud, far)
            points = cloud.points
        # The points, not the file: the same cloud may be stored in two formats.
        digest = hashlib.sha256(np.ascontiguousarray(points).tobytes()).hexdigest()
        if (first := self._first_of.setdefault(digest, name)) != name:
            doubts.append(f"the same points as {first}")
            self._equal.append((first, name))
        elif self.compare:
            from hf_any3d.data.checks.near_duplicates import sample_of

            # None of a cloud that is too small to be sampled, which is then compared by its checksum alone.
            if (sample := sample_of(cloud)) is not None:
                self._samples[name] = sample
        # A mesh may have a large surface with few vertices.
        if len(points) < _FEW_POINTS and not cloud.is_mesh:
            doubts.append(f"{len(points)} points are very few")
        extent = points.max(axis=0) - points.min(axis=0)
        if not extent.any():
            doubts.append("all points have the same coordinates")
        x, y, z = (round(float(size), 6) for size in extent)
        has = tuple(column for column in _COLUMNS if getattr(cloud, column) is not None)
        checked = CheckedCloud(tile_of(name, cloud), len(points), (x, y, z), has, (*doubts, *doubts_about(cloud)))
        self.clouds.append(checked)
        return checked

    def near_duplicates(self) -> list[tuple[str, str]]:
        """Return the clouds that are near-duplicates of an earlier one, as a training counts them.

        Two samples of one thing are found among the first 3,000 clouds, equal points among all.

        Returns:
            The names of the first one of them and of each other one.
        """
        names = list(dict.fromkeys([*self._first_of.values(), *(name for _, name in self._equal)]))
        place = {name: number for number, name in enumerate(names)}
        ties = [(place[first], place[other]) for first, other in self._equal]
        if len(names) < 2 or not self.compare:
            return []
        import torch

        from hf_any3d.data.checks.near_duplicates import MOST_COMPARED, groups_of, near_duplicates

        # Each pair is compared, so that more of them would take minutes.
        sampled = list(self._samples)[:MOST_COMPARED]
        if len(sampled) > 1:
            found = near_duplicates(torch.stack([self._samples[name] for name in sampled]))
            ties += [(place[sampled[first]], place[sampled[other]]) for first, other in found]
        groups = groups_of(len(names), ties)
        return [(names[group], names[number]) for number, group in enumerate(groups) if group != number]

    def other_units(self) -> Iterator[tuple[int, str]]:
        """Find clouds whose extent differs from the usual one of all by about the factor of a unit.

        Sizes are compared in meters where a file says its unit, and as they are where it does not. Yields the number
        of the cloud, and how its extent differs.
        """
        # Clouds of equal points have no extent that could be compared.
        measured = [number for number, cloud in enumerate(self.clouds) if max(cloud.extent) > 0]
        if len(measured) < _FEWEST_EXTENTS:
            return
        units = [self.clouds[number].tile.meters_per_unit for number in measured]
        sizes = [max(self.clouds[number].extent) * (unit or 1.0) for number, unit in zip(measured, units, strict=True)]
        # The middle one, which a few files of another unit do not move.
        usual = sorted(sizes)[len(sizes) // 2]
        all_known = None not in units
        for number, size in zip(measured, sizes, strict=True):
            if usual / _OTHER_UNIT < size < usual * _OTHER_UNIT:
                continue
            times, than = (usual / size, "smaller") if size < usual else (size / usual, "larger")
            times = f"{float(f'{times:.1g}'):,.0f}"  # one digit is enough
            unit, why = (" m", "") if all_known else ("", ": in another unit?")
            text = f"the largest extent is {size:g}{unit}, about {times} times {than} than the usual {usual:g}{unit}"
            yield number, f"{text}{why}"


def doubts_of(row: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a file but for those of what a cloud has no place for, such as textures."""
    beginning = f"{printable(row['file'])}: {LEFT_OUT}"
    return [text for text in row.get("warnings", ()) if not text.startswith(beginning)]


def count_verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many files are good, doubtful and bad."""
    counts = Counter("bad" if "error" in row else "doubtful" if doubts_of(row) else "good" for row in rows)
    return {verdict: counts[verdict] for verdict in ("good", "doubtful", "bad")}


def is_place(cloud: PointCloudData) -> bool:
    """Return whether a cloud is more likely a scan of a place than an object: by its axis, unit or coordinates."""
    return not cloud.is_mesh and (
        cloud.up_axis == "z" or cloud.meters_per_unit is not None or cloud.offset is not None
    )


def doubts_about(cloud: PointCloudData) -> list[str]:
    """Describe what is doubtful about the coordinates of a cloud: their precision and their unit.

    A coordinate stored in float32 far from the origin, such as one of a map projection, has steps: a cloud then
    consists of planes. Objects and rooms in millimeters have extents of thousands; formats of scanners and coordinates
    of maps are in meters or feet.
    """
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
                f"{axis} has {distinct} different values in {len(values)} points, in steps of {step:g}: too far "
                "from the origin for its precision; subtract an offset before saving"
            )
    # Formats that know an up axis or an offset are those of scanners and maps, which are not in millimeters.
    of_map = cloud.up_axis is not None or cloud.offset is not None or np.abs(points).max() > _MAP_DISTANCE * size
    of_map |= cloud.meters_per_unit is not None
    if _MILLIMETERS[0] <= size <= _MILLIMETERS[1] and not of_map:
        doubts.append(f"the largest extent is {size:g}, which suggests millimeters if this is an object or a room")
    return doubts


def classes_of_folder(folder: Path, files: Sequence[str]) -> Counter[str]:
    """Return how many files of a folder each class has; empty if they are in no folders of classes."""
    from hf_any3d.data.catalog.folder_layout import SPLIT_NAMES

    # The class is the folder nearest to a file that is not that of a split.
    folders = [Path(name).relative_to(folder).parts[:-1] for name in files]
    owned = [[name for name in parts if name.lower() not in SPLIT_NAMES] for parts in folders]
    counts = Counter(names[-1] for names in owned if names)
    # Files of a single folder are not sorted by class.
    return counts if len(counts) > 1 else Counter()


def names_for_one_class(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield what is doubtful about the names of classes: those that differ only in case or spaces."""
    first_names: dict[str, str] = {}
    for name in counts:
        other = first_names.setdefault(" ".join(name.casefold().replace("_", " ").split()), name)
        if other != name:
            yield (
                f"classes {other!r} ({counts[other]} scans) and {name!r} ({counts[name]}) differ only in case or "
                "spaces; use one name for both"
            )


def describe_classes(counts: Mapping[str, int]) -> str:
    """Say which classes need more scans, by how many each has."""
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
    return f"{said}; {named} would benefit most from more scans"


def empty_folders(root: Path) -> Iterator[Path]:
    """Yield the folders below a folder that hold no readable file, at any depth."""
    # Endings as the suffix of a path has them.
    types = {f".{name}" for name in FORMATS}
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        is_hidden = any(part.startswith(".") for part in folder.parts)
        if not is_hidden and not any(file.suffix.lower() in types for file in folder.rglob("*")):
            yield folder
