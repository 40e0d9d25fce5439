"""What the repository holds: binaries only where they belong, and a word on every folder at the root."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# By path and ending, so that an archive or a program is at home nowhere; `*` goes through folders, too.
HOMES = {
    "docs/*.png": "pictures of the pages",
    "examples/data/*.ply": "example scans",
    "examples/data/*.parquet": "the bundled data set",
    "hf_any3d/default_model/*.safetensors": "the bundled classifier",
    "modeling/*.safetensors": "weights that a method starts from",
    "survey/hf_any3d_survey/scene_model/*.safetensors": "the bundled model of airborne scans",
    "studies/results/*.parquet": "measurements of studies, run by run",
    "studies/results/*.png": "their figures",
    "tests/reference/*.safetensors": "stored runs of the released programs",
    "tests/modeling/stored_models/*.safetensors": "models as earlier versions saved them",
    **{
        f"tests/files/*.{kind}": "one small file of each kind"
        for kind in ("glb", "npy", "npz", "pcd", "ply", "pnts", "stl")
    },
    **{f"tests/data/files/*.{kind}": "small files by other programs" for kind in ("e57", "glb", "laz", "pcd", "ply")},
}
# Of ZIP, gzip, bzip2, xz, 7-Zip, PDF, PNG, GIF and JPEG.
_STARTS = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff")
_ENDINGS = r"\.(whl|zip|tar|t?gz|bz2|xz|7z|jar|egg|so|dll|dylib|exe|o|a|pyc|pdf|docx?|pkl|pth?|onnx|bin)$"


def is_binary(name: str, start: bytes) -> bool:
    return b"\0" in start or start.startswith(_STARTS) or bool(re.search(_ENDINGS, name))


def homes_of(name: str) -> set[str]:
    return {pattern for pattern in HOMES if fnmatch(name, pattern)}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


def test_binaries_are_only_where_they_belong(tracked):
    lost, used = [], set()
    for name in tracked:
        with (ROOT / name).open("rb") as file:
            start = file.read(1024)
        if is_binary(name, start):
            used |= homes_of(name)
            if not homes_of(name):
                lost.append(name)
    assert lost == []
    assert used == set(HOMES), "a home without a binary"


def test_what_is_no_text_is_seen():
    assert is_binary("a.whl", b"text") and is_binary("a", b"PK\3\4") and is_binary("a.ply", b"ply\n\0")
    assert not is_binary("a.ply", b"ply\nformat ascii 1.0\n")
    assert not homes_of("tests/files/a.zip") and not homes_of("a.whl") and not homes_of("examples/data/a.so")


def test_contributing_names_every_folder_and_file_of_code_at_the_root(tracked):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## At the root")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    # Documents say by their names what they are.
    found = {name.partition("/")[0] for name in tracked} - {"LICENSE", "CITATION.cff"}
    assert {name for name in found if not name.endswith(".md")} == named
