"""Damaged depth images, color images and intrinsics."""

import json
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudFileError, read_rgbd
from tests.data.files.test_rgbd import FORMS, exr, millimeters, png
from tests.fuzz.damage import mutate
from tests.fuzz.fuzz_files import assert_valid
from tests.fuzz.target import Target


class DamagedFrames(Target):
    """One of the three files of a frame is damaged; a refusal names a file."""

    name, refusals, inputs, megabytes = "depth images", (PointCloudFileError,), 200, 256
    files = ("depth.png", "camera.json", "color.png")

    def prepare(self, folder: Path) -> None:  # noqa: D102
        color = png(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3))
        self.seeds = [(self.depth(folder), json.dumps(form).encode(), color) for form in FORMS.values()]
        for seed in self.seeds:
            self.attempt(seed, folder)

    def depth(self, folder: Path) -> bytes:
        """Return the depth image of a frame."""
        return png(millimeters())

    def make(self, generator: np.random.Generator, folder: Path) -> tuple[bytes, ...]:  # noqa: D102
        seed = list(self.seeds[int(generator.integers(len(self.seeds)))])
        hit = int(generator.integers(len(seed)))
        seed[hit] = mutate(seed[hit], generator, self.seeds[0][hit])
        return tuple(seed)

    def attempt(self, case: tuple[bytes, ...], folder: Path) -> None:  # noqa: D102
        for name, content in zip(self.files, case, strict=True):
            (folder / name).write_bytes(content)
        assert_valid(read_rgbd(*(folder / name for name in self.files)))

    def check_refusal(self, error: BaseException, case: tuple[bytes, ...], folder: Path) -> None:  # noqa: D102
        assert any(str(error).startswith(f"{folder / name}: ") for name in self.files), error


class DamagedExr(DamagedFrames):
    """The same with a depth in EXR."""

    name = "depth images in exr"
    files = ("depth.exr", "camera.json", "color.png")

    def depth(self, folder: Path) -> bytes:  # noqa: D102
        exr(folder / "seed.exr", Z=millimeters().astype(np.float32) / 1000)
        return (folder / "seed.exr").read_bytes()


TARGETS = [DamagedFrames(), DamagedExr()]
