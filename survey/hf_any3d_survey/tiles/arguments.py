"""Arguments of learning from a few labeled tiles."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.data.files.column_names import is_label_name
from hf_any3d.data.options import one_of
from hf_any3d.data.units import LENGTHS
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.training.arguments import argument

FOLDS = 5
"""Folds of the estimate at most: each costs a training."""


@dataclass
class TilesArguments:
    """Settings of learning from a few labeled tiles; those not given follow from the tiles."""

    output_dir: str = argument("trainer_output", help="Directory to write the model to.")
    ignore: str | None = argument(
        None,
        help="Codes of points that are neither learned nor judged, such as 0,1, or none; by default, of LAS, those "
        "that name no object, such as 0, 1, 7, 12 and 18. Negative ones never count.",
    )
    label_field: str | None = argument(
        None,
        help="Name of the column, property, field, array or extra dimension with the class of each point; by default "
        "a usual one, such as label.",
    )
    merge: list[str] | None = argument(
        None,
        help="Classes to join, such as 'vegetation=3,4,5', or 'other=2,3:64' with the code that files get. By default "
        "that is the last code if all are of one family, and in LAS 1, unclassified, for others. Several may follow.",
    )
    unit: str | None = argument(
        None,
        help="Of scans of places, the unit of files that say none: meters, feet or us-feet; diagonal for objects, "
        "whose size is that of their bounding box. By default meters for formats of scanners and clouds larger than "
        "20 units, else, and for meshes, diagonal.",
    )
    edges: list[float] | None = argument(
        None, help="Edges of the voxels by which surroundings are measured, the smallest first."
    )
    returns: bool = argument(True, help="Use return numbers, if all tiles have them.")
    intensity: bool = argument(True, help="Use intensities, if all tiles have them.")
    colors: bool = argument(True, help="Use colors, if all tiles have them.")
    may_lack: str | None = argument(
        None,
        help="Of returns, intensity and colors, those that some tiles lack, or those to label: the model learns with "
        "and without them, such as returns,intensity. By default it uses what all tiles have, and needs it.",
    )
    features: list[str] | None = argument(
        None,
        help="Names of further columns that are learned from, such as reflectance,deviation: extra dimensions of LAS, "
        "properties of PLY, fields of PCD, columns of text. Files to label need them, too.",
    )
    normals: bool = argument(True, help="Of objects, use directions of faces or normals, if all objects have them.")
    upright: bool = argument(
        True, help="Objects stand the same way; false for objects that lie in any direction, of which none is used."
    )
    points: int = argument(12_000, help="Points that are learned of a tile, and of each of its thinned copies.")
    folds: int = argument(FOLDS, help="Folds of the estimate at most; places stay whole.")
    seed: int = argument(42, help="Seed of weights, draws and folds.")
    up_axis: str | None = argument(None, help="Axis that points up; by default the one that all files say, else z.")
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")

    def __post_init__(self):
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
