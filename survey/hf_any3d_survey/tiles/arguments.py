"""Arguments of learning from a few labeled tiles."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.data.classes.class_rule import ClassRule
from hf_any3d.data.files.column_names import is_label_name
from hf_any3d.data.frames.units import LENGTHS
from hf_any3d.data.options import one_of
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.training.arguments import argument

FOLDS = 5
"""Folds of the estimate at most: each costs a training."""


@dataclass
class TilesArguments:
    """Settings of learning from a few labeled tiles; those not given follow from the tiles."""

    output_dir: str = argument("trainer_output", help="Output directory for the model.")
    ignore: str | None = argument(
        None,
        help="Class codes to ignore in training and evaluation, such as 0,1, or none; by default, LAS codes that "
        "are not object classes, such as 0, 1, 7, 12 and 18. Negative codes are always ignored.",
    )
    label_field: str | None = argument(
        None,
        help="Attribute with the class of each point (LAS dimension, PLY property, PCD field, text column or "
        "array name); by default a common name such as label.",
    )
    merge: list[str] | None = argument(
        None,
        help="Classes to merge, such as 'vegetation=3,4,5', or 'other=2,3:64' to set the code written to files. "
        "By default, that code is the last one if all belong to one family; otherwise LAS uses 1 "
        "(unclassified). Accepts several values.",
    )
    unit: str | None = argument(
        None,
        help="Unit of files that do not state one: meters, feet or us-feet for scans of sites; diagonal scales "
        "objects by their bounding box. By default meters for scanner formats and scans larger than 20 "
        "units, otherwise, and for meshes, diagonal.",
    )
    edges: list[float] | None = argument(None, help="Voxel sizes for neighborhood features, smallest first.")
    returns: bool = argument(True, help="Use return numbers, if all tiles have them.")
    intensity: bool = argument(True, help="Use intensities, if all tiles have them.")
    colors: bool = argument(True, help="Use colors, if all tiles have them.")
    may_lack: str | None = argument(
        None,
        help="Attributes that may be missing from some tiles, such as returns,intensity: the model trains with "
        "and without them. By default it uses returns, intensity and colors if all tiles have them, and then "
        "requires them.",
    )
    features: list[str] | None = argument(
        None,
        help="Additional attributes to train on, such as reflectance,deviation: LAS dimensions, PLY properties, "
        "PCD fields or text columns. Files to label must have them too.",
    )
    normals: bool = argument(True, help="For objects: use face or point normals, if all objects have them.")
    upright: bool = argument(
        True,
        help="Whether all objects are upright; false for objects in arbitrary orientation, so that no "
        "direction is used.",
    )
    points: int = argument(12_000, help="Training points per tile, and per thinned copy of it.")
    folds: int = argument(FOLDS, help="Maximum number of cross-validation folds; sites are never split.")
    seed: int = argument(42, help="Random seed for weights, sampling and folds.")
    up_axis: str | None = argument(None, help="Up axis; by default the one stated by all files, otherwise z.")
    license: str | None = argument(None, help="License identifier for the model card, as on the Hub.")

    def __post_init__(self):
        ClassRule.parse(self.ignore, self.merge)
        check_settings(self, {"unit": (None, *LENGTHS, "diagonal"), "up_axis": (None, "x", "y", "z")})
        self.features = [name.strip() for text in self.features or () for name in text.split(",") if name.strip()]
        for name in self.features:
            # Whatever tells the answer at training is not there where the answer is wanted.
            is_chosen = self.label_field is not None and name.lower() == self.label_field.lower()
            if is_chosen or (self.label_field is None and is_label_name(name)):
                raise ValueError(f"--features {name}: a column of labels; leave it out, or name it with --label_field")
        for name in self.lacked:
            one_of("--may_lack", name, ("returns", "intensity", "colors"))
        if self.folds < 2 or self.points < 1:
            raise ValueError(f"--folds {self.folds} --points {self.points}; expected at least 2 and 1")

    @property
    def lacked(self) -> list[str]:
        """Measures that scans may lack."""
        return [name.strip() for name in (self.may_lack or "").split(",") if name.strip()]

    @property
    def unit_of_files(self) -> str | None:
        """Unit of files that do not state one."""
        return self.unit if self.unit in LENGTHS else None
