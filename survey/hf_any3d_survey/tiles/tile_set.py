"""Labeled tiles that are learned together: each is looked at once, and all that follows from them is asked here."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_any3d.data.checks.left_out_points import split_withheld
from hf_any3d.data.classes.class_rule import Classes, ClassRule, codes_without_class
from hf_any3d.data.classes.las_classes import CURRENT
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors
from hf_any3d.data.frames.units import check_projected, taken_for_meters
from hf_any3d.utils.messages import listed
from hf_any3d_survey.local_features.neighborhoods import EDGES
from hf_any3d_survey.processor import OBJECT_EDGES, RETURNS, LocalFeaturesProcessor
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.codes import (
    POINTS,
    remarks_on_codes,
    what_is_labeled,
    with_codes_of,
    with_common_words,
    with_learned_codes,
    with_one_table,
)
from hf_any3d_survey.tiles.places import places_of, remarks_on_copies, remarks_on_overlaps, twins_of
from hf_any3d_survey.tiles.reading import TileFacts, look_at, read_tile, refuse_without_points, told

LEAST_POINTS, LEAST_SHARE = 20, 0.0002
"""Labeled points of a class, and their share, below which it is left out: of a few points nothing is learned, and
they would weigh as much as a common class."""
# What points have, as messages say it.
_WORDS = {"returns": "returns", "intensity": "intensities", "rgb": "colors", "normals": "normals"}


@dataclass(frozen=True)
class TileSet:
    """Labeled tiles that are learned together.

    All are looked at before any is learned, as what is learned of each depends on the others.

    Attributes:
        tiles: Knowledge of each, with the codes that are learned; unusable files are left out.
        labels_of: What has labels, `POINTS` or `FACES`.
        rule: Rule by which codes become classes, with the words of the files.
        classes: The classes of all tiles together.
        arguments: Settings of learning.
        notes: Remarks on files: those that are left out and why, and those whose codes are taken for others.
        rare: Classes that are left out, with their few points.
        least: Points that a class needs.
    """

    tiles: list[TileFacts]
    labels_of: str
    rule: ClassRule
    classes: Classes
    arguments: TilesArguments
    notes: list[str]
    rare: list[str]
    least: int

    @classmethod
    def read(cls, files: Sequence[Path], rule: ClassRule, arguments: TilesArguments) -> TileSet:
        """Look at labeled files, and settle the classes of all.

        Raises:
            ValueError: No file has points or labels that say something; labels are of faces, or words, in some files
                alone; there is a single class; or files would get one code for two.
        """
        found, notes = _look_at_all(files, arguments)
        # Decided over all files: faces are learned only if all have labels of faces.
        labels_of = what_is_labeled(found)
        found, more = with_one_table([with_codes_of(tile, labels_of) for tile in with_common_words(found)])
        notes += more
        # Before codes are left out: a class without points may be meant for one that has some.
        present = {code for tile in found for code in tile.codes}
        # Without any code the files are at fault, and not the rule.
        if present:
            rule.check_in_files(present)
        tiles: list[TileFacts] = []
        for tile in with_learned_codes(found, rule):
            # Codes such as 0 and 1 of LAS say that nobody has classified a point.
            if tile.codes:
                tiles.append(tile)
            else:
                codes = ", ".join(map(str, sorted(tile.left_out))) or "none that counts"
                what = labels_of.removesuffix("s")
                notes.append(f"skipped: {tile.path}: no {what} has a usable class; its codes are {codes}")
        if not tiles:
            told(notes)
            raise ValueError(
                f"{files[0].parent}: none of {len(files)} files has labeled points; assign classes to some of them"
            )
        rule = replace(rule, words=tiles[0].words or ())
        # Codes are those of LAS in all files or in none.
        least = _least_points(tiles)
        classes, rare = Classes.among(_codes_of(tiles), rule, tiles[0].table and CURRENT, least)
        if len(classes.names) < 2:
            only = ", ".join(classes.names) or "none"
            raise ValueError(
                f"one class ({only}) in {len(tiles)} file{'s' * (len(tiles) > 1)}; training needs two or more "
                "(check --ignore and --merge)"
            )
        for tile in tiles:
            if not classes.numbers.keys() & tile.codes.keys():
                notes.append(f"skipped: {tile.path}: all its classes have fewer than {least} points in total")
        tiles = [tile for tile in tiles if classes.numbers.keys() & tile.codes.keys()]
        return cls(tiles, labels_of, rule, classes, arguments, notes, rare, least)

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def codes(self) -> Counter[int]:
        """Code that is learned -> points, or faces, of all tiles."""
        return _codes_of(self.tiles)

    @cached_property
    def unit(self) -> str:
        """Unit of features: "meters" for scans of places, "diagonal" for objects, which have sizes of their own."""
        # In meters features compare heights of all scans; objects are compared by shares of their own size.
        if self.arguments.unit_of_files:
            return "meters"
        if self.arguments.unit:
            return self.arguments.unit
        are_places = [
            tile.is_las or (not tile.is_mesh and (tile.meters is not None or np.ptp(tile.bounds, axis=0).max() > 20))
            for tile in self.tiles
        ]
        return "meters" if all(are_places) else "diagonal"

    @property
    def are_places(self) -> bool:
        """True for scans of places, False for objects."""
        return self.unit == "meters"

    @property
    def kind(self) -> str:
        """Kind of a file, "tile" or "object"."""
        return "tile" if self.are_places else "object"

    @cached_property
    def twins(self) -> np.ndarray:
        """Number of the group of each tile, (tiles,), whose tiles are copies or share ground."""
        return twins_of(self.tiles, self.are_places)

    @cached_property
    def places(self) -> np.ndarray:
        """Number of the place of each tile, (tiles,); of objects, which all lie around the origin, of the group."""
        return places_of(self.tiles) if self.are_places else self.twins

    @property
    def num_places(self) -> int:
        """Number of places."""
        return len(np.unique(self.places))

    @property
    def measures(self) -> list[str]:
        """Values of points that are learned from, by the names of `TileFacts.measured`."""
        return [name for name in self._wanted if self._is_learned(name)]

    @property
    def _wanted(self) -> list[str]:
        arguments = self.arguments
        wanted = {
            "returns": arguments.returns,
            "intensity": arguments.intensity,
            "rgb": arguments.colors,
            "normals": arguments.normals and self.unit == "diagonal",
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    @property
    def _may_lack(self) -> list[str]:
        return ["rgb" if name == "colors" else name for name in self.arguments.lacked]

    def _is_learned(self, measure: str) -> bool:
        """Return whether all tiles have a measure; of those that tiles may lack, one that has it is enough."""
        # What a tile lacks cannot be learned from the others: the network would see a zero that means "unknown" there.
        without = self._without(measure)
        return not without or (measure in self._may_lack and len(without) < len(self))

    def _without(self, measure: str) -> list[str]:
        return [tile.path.name for tile in self.tiles if measure not in tile.measured]

    @property
    def up_axis(self) -> str:
        """Axis that points up: the given one, the one that all files state, or z.

        Raises:
            ValueError: Another one than z is given for LAS.
        """
        # One axis for all: files that contradict each other say nothing.
        said = {tile.up_axis for tile in self.tiles}
        up_axis = self.arguments.up_axis or (said.pop() if len(said) == 1 else None) or "z"
        las = next((tile.path for tile in self.tiles if tile.is_las), None)
        if las is not None and up_axis != "z":
            raise ValueError(f"--up_axis {up_axis}: in {las.name}, as in every LAS file, z is the elevation; use z")
        return up_axis

    def processor(self) -> LocalFeaturesProcessor:
        """Return the processor for what all tiles have."""
        features = ["xyz"]
        optional: list[str] = []
        for name in self.measures:
            of_measure = RETURNS if name == "returns" else [name]
            features += of_measure
            if name in self._may_lack:
                optional += of_measure
        return LocalFeaturesProcessor(
            edges=self.arguments.edges or (EDGES if self.are_places else OBJECT_EDGES),
            unit=self.unit,
            features=features,
            up_axis=self.up_axis,
            upright=self.arguments.upright,
            columns=self.arguments.features or (),
            optional=optional,
        )

    def open(self, tile: TileFacts) -> PointCloudData:
        """Read a tile again, with the labels that are learned: all at once may not fit into memory."""
        # What is wrong with the file was said when it was looked at.
        with warnings.catch_warnings(action="ignore"):
            cloud = _read(tile.path, self.arguments, tile.words)
            # As in a tile that is labeled later, they are in no surroundings.
            cloud, _ = split_withheld(cloud)
        if cloud.is_mesh and self.labels_of == POINTS:
            # So that samples take the label of the nearest vertex
            cloud = replace(cloud, face_labels=None)
        return cloud

    @property
    def remarks(self) -> list[str]:
        """Sentences that the owner of the tiles should read before they are learned."""
        remarks = [*self.notes, *remarks_on_codes(self.tiles, self.rule), *self._remarks_on_classes()]
        remarks += self._remarks_on_measures()
        if self.are_places:
            remarks += self._remarks_on_units()
        remarks += remarks_on_copies(self.tiles)
        if self.are_places:
            remarks += remarks_on_overlaps(self.tiles)
        return remarks

    def _remarks_on_classes(self) -> list[str]:
        remarks = []
        # A handful of points of a class is more often a slip of the hand than a class.
        if self.rare:
            remarks.append(f"classes not trained, with fewer than {self.least} points: {', '.join(self.rare)}")
        remarks += codes_without_class(self.classes, self.rule)
        differences = []
        for number, name in enumerate(self.classes.names):
            # Whoever labeled the other files may not have looked for this class, and called its points something else.
            holders = [tile.path.name for tile in self.tiles if number in map(self.classes.numbers.get, tile.codes)]
            if len(holders) < len(self):
                shown = listed(holders, 3)
                differences.append(f"classes differ: {name} is in {len(holders)} of {len(self)} files ({shown})")
        # Some surveys put all vegetation into one class, others into three by height.
        heights = {3: "low vegetation", 4: "medium vegetation", 5: "high vegetation"}
        heights = [str(code) for code, name in heights.items() if name in self.classes.names]
        if len(heights) > 1 and any("vegetation" in remark for remark in differences):
            differences.append(
                "classes: some tiles do not split vegetation by height; merge it with --merge "
                f"vegetation={','.join(heights)}"
            )
        return remarks + differences

    def _remarks_on_measures(self) -> list[str]:
        remarks = []
        for name in self._wanted:
            without = self._without(name)
            # If no file has it, nothing is missing.
            if len(without) < len(self) and not self._is_learned(name):
                remarks.append(f"{_WORDS[name]}: not used; missing in {listed(without, 3)}")
        return remarks

    def _remarks_on_units(self) -> list[str]:
        """Return remarks on units that are converted, or taken for meters, and on depths."""
        remarks = []
        unknown = [tile.path.name for tile in self.tiles if tile.meters is None]
        if unknown:
            remarks.append(taken_for_meters(unknown, len(self)))
        for what, lengths in (
            ("coordinates", [tile.meters for tile in self.tiles]),
            ("heights", [tile.high for tile in self.tiles]),
        ):
            named = zip(self.tiles, lengths, strict=True)
            feet = [tile.path.name for tile, length in named if length is not None and abs(length) != 1.0]
            if feet:
                of_all = f"{len(feet)} of {len(self)} tiles"
                remarks.append(f"units: {what} of {of_all} are in feet and were converted ({', '.join(feet[:3])})")
        return remarks


def _look_at_all(files: Sequence[Path], arguments: TilesArguments) -> tuple[list[TileFacts], list[str]]:
    """Read the labeled files, and return what is known of each, with remarks on unusable ones."""
    found: list[TileFacts] = []
    notes: list[str] = []
    errors: list[PointCloudError] = []
    for path in files:
        try:
            cloud = _read(path, arguments)
        except PointCloudError as error:
            # A damaged or unlabeled file among many is told, and the others are learned.
            notes.append(f"skipped: {error}")
            errors.append(error)
            continue
        if arguments.unit != "diagonal":
            with file_errors(path):
                # Degrees in place of meters would make every height a wall.
                check_projected(cloud)
        found.append(look_at(path, cloud))
    refuse_without_points(files, errors)
    if arguments.features and not found:
        # Most likely a name that no file has
        raise errors[0]
    return found, notes


def _read(path: Path, arguments: TilesArguments, words: Sequence[str] | None = None) -> PointCloudData:
    return read_tile(
        path,
        arguments.label_field,
        words,
        arguments.unit_of_files,
        arguments.features or (),
        is_place=arguments.unit != "diagonal",
    )


def _codes_of(tiles: Sequence[TileFacts]) -> Counter[int]:
    return sum((tile.codes for tile in tiles), Counter())


def _least_points(tiles: Sequence[TileFacts]) -> int:
    """Return the points that a class needs."""
    # A part may be a few large faces, on which any number of points is drawn.
    if all(tile.is_mesh for tile in tiles):
        return 1
    return max(LEAST_POINTS, int(LEAST_SHARE * _codes_of(tiles).total()))
