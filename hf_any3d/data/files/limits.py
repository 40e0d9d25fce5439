"""How much one file may hold once it is decoded, so that a small file cannot ask for all memory or hours of work."""

import os
from dataclasses import dataclass, fields

from hf_any3d.data.files.errors import PointCloudError

VARIABLE = "ANY3D_READ_LIMITS"
"""Environment variable with limits for all reading, such as `points=300000000,expansion=100`."""

FREE_BYTES = 128 << 20
"""What a file may always decode to, however small it is."""


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what one file may hold, checked before memory is taken. They leave room for scans of 100 M points.

    Attributes:
        points: points or vertices.
        faces: triangles, after polygons have been cut.
        bytes: the size of the file, with those it refers to, and of the arrays it is decoded into.
        expansion: how many times larger than the file its arrays may be, beyond the first 128 MB (`FREE_BYTES`).
            Real compressed scans expand 2 to 20 times; what was made to fill memory expands hundreds of times.

    Raises:
        ValueError: a limit below 1.
    """

    points: int = 100_000_000
    faces: int = 200_000_000
    bytes: int = 8 << 30
    expansion: int = 32

    def __post_init__(self):
        for entry in fields(self):
            value = getattr(self, entry.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"ReadLimits: {entry.name} is {value!r}; expected a whole number from 1")

    @classmethod
    def current(cls) -> "ReadLimits":
        """Give the defaults, changed as the environment variable ANY3D_READ_LIMITS says.

        Raises:
            ValueError: the variable holds something else than `name=number`, separated by commas.
        """
        text, changes = os.environ.get(VARIABLE, ""), {}
        names = [entry.name for entry in fields(cls)]
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in names or not number.isdecimal() or not number.isascii() or len(number) > 18:
                raise ValueError(f"{VARIABLE} has {part!r}; expected {', '.join(names)}, each with = and a number")
            changes[name] = int(number)
        return cls(**changes)

    def check(self, *, points: int = 0, faces: int = 0, decoded: int = 0, stored: int | None = None) -> None:
        """Refuse what goes beyond the limits.

        Args:
            points: points that the file declares or holds.
            faces: triangles.
            decoded: bytes of the arrays that are to be made.
            stored: bytes of the file; None where the arrays do not come from one.

        Raises:
            PointCloudError: names the limit and how to raise it.
        """
        for name, value in (("points", points), ("faces", faces), ("bytes", decoded)):
            if value > getattr(self, name):
                raise self._refusal(name, f"{value} {name}", f"at most {getattr(self, name)}")
        if stored is not None and decoded > max(FREE_BYTES, self.expansion * stored):
            raise self._refusal(
                "expansion", f"{stored} bytes expand to {decoded}", f"at most {self.expansion} times as many"
            )

    @staticmethod
    def _refusal(name: str, seen: str, allowed: str) -> PointCloudError:
        return PointCloudError(
            f"{seen}; {allowed} are read (pass limits=ReadLimits({name}=…) or set {VARIABLE}={name}=…)"
        )
