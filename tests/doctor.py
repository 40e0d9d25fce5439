"""Print what this checkout lacks, one line each with what to do; `make doctor`.

Needs only the standard library and setup.cfg, so that it runs before anything is installed:

    python3 tests/doctor.py

Exits with 1 if something that the package or its tests need is missing; extras and accelerators are optional.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What each extra of setup.cfg is for; the names of its packages are printed for others.
PURPOSES = {
    "demo": "`hf-any3d demo`",
    "dev": "tests and `make lint`",
    "export": "ONNX export",
    "files": "HDF5, LAS and LAZ files",
    "metrics": "METEOR of captions",
    "offline": "the quickstart's encoder where the hub cannot be reached",
    "survey": "labels learned from tiles, inventories of trees and buildings",
    "tiles": "labeled tiles in LAS and LAZ",
    "visuals": "figures",
}
ENCODER = "models--sentence-transformers--all-MiniLM-L6-v2"
GIGABYTES = 5  # of packages, encoders and converted datasets
# Run apart: a broken torch can end the process.
TORCH = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({"cuda": torch.version.cuda, "hip": torch.version.hip, "gpu": gpu,
    "names": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if gpu else [],
    "bytes": torch.cuda.mem_get_info()[1] if gpu else 0,
    "mps": torch.backends.mps.is_available()}))
"""

Finding = tuple[str, str]
OK, MISSING, OPTIONAL = "ok", "MISSING", "optional"


def main(setup: Path = ROOT / "setup.cfg") -> int:
    """Print the findings and return the exit status."""
    options = configparser.ConfigParser(interpolation=None)
    options.read(setup, encoding="utf-8")
    missing = 0
    for part in (_python, _checkout, _packages, _torch, _extras, _programs, _encoder, _folders):
        for state, text in part(options):
            missing += state == MISSING
            print(f"{state:<9}{text}", flush=True)
    print(f"{missing} missing" if missing else "everything needed is there")
    return int(missing > 0)


def _python(options: configparser.ConfigParser) -> Iterator[Finding]:
    wanted, version = options["options"]["python_requires"], ".".join(map(str, sys.version_info[:3]))
    where = f"Python {version}, {sys.executable}"
    if not _fits(version, wanted):
        yield MISSING, f"{where}; {wanted} is needed: make install PYTHON=python3.12"
    elif sys.prefix == sys.base_prefix:
        yield OPTIONAL, f"{where}, not a virtual environment: make install makes .venv"
    else:
        yield OK, where


def _checkout(options: configparser.ConfigParser) -> Iterator[Finding]:
    found = _version("hf-any3d")
    if found is None:
        yield MISSING, "hf-any3d is not installed: make install"
        return
    address = json.loads(metadata.distribution("hf-any3d").read_text("direct_url.json") or "{}").get("url", "")
    if address and Path(re.sub("^file://", "", address)) != ROOT:
        yield OPTIONAL, f"hf-any3d {found} is installed from {address}, not from here: pip install -e ."
    else:
        yield OK, f"hf-any3d {found}"


def _packages(options: configparser.ConfigParser) -> Iterator[Finding]:
    for requirement in _requirements(options["options"]["install_requires"]):
        yield _package(requirement, MISSING)


def _remedy(what: str) -> str:
    # Without this package there is no environment yet, and a bare pip would choose the largest torch.
    return "make install" if _version("hf-any3d") is None else f"pip install {what}"


def _package(requirement: str, otherwise: str) -> Finding:
    name, wanted = _parts(requirement)
    found = _version(name)
    if found is not None and _fits(found, wanted):
        return OK, f"{name} {found}"
    seen = "is not installed" if found is None else f"is {found}"
    return otherwise, f"{name} {seen}; expected {wanted or 'any version'}: {_remedy(repr(requirement))}"


def _torch(options: configparser.ConfigParser) -> Iterator[Finding]:
    if _version("torch") is None:
        return
    told = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    if told.returncode:
        reason = (told.stderr.strip().splitlines() or [f"exit status {told.returncode}"])[-1]
        yield MISSING, f"torch cannot be imported ({reason}): pip install --force-reinstall torch"
        return
    build: dict[str, Any] = json.loads(told.stdout.strip().splitlines()[-1])
    kind = f"CUDA {build['cuda']}" if build["cuda"] else f"ROCm {build['hip']}" if build["hip"] else "CPU"
    if build["gpu"]:
        yield OK, f"torch is built for {kind}; {', '.join(build['names'])}, {build['bytes'] / 2**30:.0f} GB"
    elif build["mps"]:
        yield OK, "torch runs on the GPU of this Mac (mps)"
    elif shutil.which("nvidia-smi") and not build["cuda"]:
        yield OPTIONAL, "there is an NVIDIA driver, but torch is built for CPU: see https://pytorch.org/get-started"
    elif build["cuda"]:
        yield OPTIONAL, f"torch is built for {kind}, but sees no GPU: check the driver with nvidia-smi"
    else:
        yield OPTIONAL, "torch is built for CPU and there is no GPU: quickstart and tests need none"


def _extras(options: configparser.ConfigParser) -> Iterator[Finding]:
    for extra, text in options["options.extras_require"].items():
        packages = _requirements(text)
        absent = [_parts(one)[0] for one in packages if _package(one, MISSING)[0] == MISSING]
        purpose = PURPOSES.get(extra, ", ".join(_parts(one)[0] for one in packages))
        if absent:
            state, way = OPTIONAL, f"pip install -e '.[{extra}]'"
            if extra == "dev":
                state, way = MISSING, _remedy(f"-e '.[{extra}]'")
            yield state, f"[{extra}] for {purpose}, without {', '.join(absent)}: {way}"
        else:
            yield OK, f"[{extra}] for {purpose}"


def _programs(options: configparser.ConfigParser) -> Iterator[Finding]:
    absent = [name for name in ("make", "git") if not shutil.which(name)]
    yield (OPTIONAL, f"no {' and no '.join(absent)} in PATH") if absent else (OK, "make, git")
    driver = shutil.which("chromedriver")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if driver and browser:
        yield OK, f"browser for tests of pages: {browser}"
    else:
        yield OPTIONAL, "no browser with chromedriver, so tests of pages are skipped: make browser (Debian, as root)"


def _encoder(options: configparser.ConfigParser) -> Iterator[Finding]:
    package = _parts(options.get("options.extras_require", "offline", fallback="").strip() or "none")[0]
    hub = Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub")
    if any((hub / ENCODER / "snapshots").glob("*/*.safetensors")):
        yield OK, f"quickstart's encoder: {hub / ENCODER}"
    elif _version(package):
        yield OK, f"quickstart's encoder: package {package} {_version(package)}"
    else:
        yield OPTIONAL, "the quickstart's encoder is not downloaded: make encoder"


def _folders(options: configparser.ConfigParser) -> Iterator[Finding]:
    folders = {
        "HF_HOME": _home(),
        "HF_HUB_CACHE": Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub"),
        "HF_DATASETS_CACHE": Path(os.environ.get("HF_DATASETS_CACHE") or _home() / "datasets"),
        "TMPDIR": Path(tempfile.gettempdir()),
    }
    for variable, folder in folders.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        if not os.access(there, os.W_OK | os.X_OK):
            yield MISSING, f"{there} cannot be written: set {variable} to another folder"
        elif free < GIGABYTES:
            yield OPTIONAL, f"{folder}: {free:.1f} GB free, {GIGABYTES} are advised: make space or set {variable}"
        else:
            yield OK, f"{folder}: {free:.0f} GB free"


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(cache, "huggingface")).expanduser()


def _requirements(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _parts(requirement: str) -> tuple[str, str]:
    """Split "laspy[lazrs]>=2.5" into its name and version."""
    name, version = re.split(r"(?=[<>=~!;\s])", requirement + " ", maxsplit=1)
    return name.partition("[")[0], version.partition(";")[0].strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, wanted: str) -> bool:
    """Return whether a version is in a range such as ">=2.3,<3" or "~=1.1.400"."""
    have = _numbers(version)
    for operator, number in re.findall(r"([<>=~!]+)\s*([^,\s]+)", wanted):
        need = _numbers(number)
        same = number.count(".")  # "~=1.1.400" allows 1.1.*
        fits = {
            ">=": have >= need,
            "==": have == need,
            "!=": have != need,
            "<": have < need,
            "<=": have <= need,
            ">": have > need,
            "~=": have >= need and have[:same] == need[:same],
        }
        if not fits[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Read the numbers of a release, as long as the longest: 2.13.0+cpu is (2, 13, 0, 0, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in release.group().split(".")] if release else []
    return tuple(numbers + [0] * (5 - len(numbers)))


if __name__ == "__main__":
    sys.exit(main())
