"""From a cloud or mesh of any size to the plain columns that training reads."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.point_arrays import resample_index

if TYPE_CHECKING:
    from datasets.features.features import FeatureType

_TYPES = {"points": "float32", "normals": "float32", "colors": "uint8", "labels": "int64"}
_BYTES_AT_A_TIME = 16 * 2**20
_TYPICAL_POINTS = 100_000


@dataclass(frozen=True)
class CloudColumns:
    """Which columns are made of a cloud, and of how many points.

    Attributes:
        num_points: draw this many points of every cloud; None keeps all points of point files and draws `mesh_points`
            from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: of "normals", "colors" and "labels", those that are made beside the points; every file must have
            them. Colours are 0 to 255.
        seed: decides which points are drawn, for each cloud on its own.

    Raises:
        ValueError: a number of points below one, or an unknown column.
    """

    num_points: int | None = None
    mesh_points: int = 2048
    columns: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self):
        for name, value in (("num_points", self.num_points), ("mesh_points", self.mesh_points)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if isinstance(self.columns, str) or set(self.columns) - {"normals", "colors", "labels"}:
            unknown = self.columns if isinstance(self.columns, str) else sorted(set(self.columns) - set(_TYPES))[0]
            raise ValueError(f"columns has {unknown!r}; expected 'normals', 'colors' or 'labels', as a list")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, points first."""
        return ("points", *self.columns)

    @property
    def features(self) -> "dict[str, FeatureType]":
        """Their types in `datasets`."""
        from datasets import Array2D, List, Value

        return {
            name: List(Value(_TYPES[name]), length=-1 if self.num_points is None else self.num_points)
            if name == "labels"
            else Array2D((self.num_points, 3), _TYPES[name])
            for name in self.names
        }

    @property
    def rows_at_a_time(self) -> int:
        """How many rows to gather before they are written: enough for speed, few enough for memory."""
        return max(1, min(1000, _BYTES_AT_A_TIME // (12 * len(self.names) * (self.num_points or _TYPICAL_POINTS))))

    def row(self, cloud: PointCloudData) -> dict[str, np.ndarray]:
        """Make the columns of one cloud.

        Returns:
            `points` (num_points, 3) float32 in the units of the file, `normals` float32, `colors` uint8, `labels`
            (num_points,) int64.

        Raises:
            PointCloudError: a cloud without a column asked for, or a mesh without a surface.
        """
        # Seeded by its own points, a cloud gives the same sample wherever its file lies and whatever lies beside it.
        generator = np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(cloud.points))])
        index = slice(None)
        if cloud.is_mesh:
            cloud = cloud.sample_surface(self.num_points or self.mesh_points, generator)
        elif self.num_points is not None:
            index = resample_index(len(cloud), self.num_points, generator)
        row = {}
        for name in self.names:
            values = getattr(cloud, name)
            if values is None:
                raise PointCloudError(f"the file has no {name}; leave them out of columns, or the file")
            if name == "colors":
                values = (values * 255).round()
            row[name] = values[index].astype(_TYPES[name])
        return row
