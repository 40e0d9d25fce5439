"""SHA-256 of published files, where somebody has written them down beside the data."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from hf_any3d.data.benchmarks.lists import read_lines

FILE_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_checksums(root: Path, files: Iterable[Path]) -> None:
    """Compare files with the sums in `root/SHA256SUMS`, as `sha256sum` writes it; nothing where there is no such file.

    Args:
        root: the folder; the names in the list are relative to it.
        files: the files that matter now; others in the list are not read.

    Raises:
        ValueError: a line that is none, or a file with another sum; names it.
    """
    path = root / FILE_NAME
    if not path.is_file():
        return
    sums = {}
    for line in read_lines(path):
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError(f"{path}: a line is {line[:60]!r}; expected a SHA-256, two spaces and a file name")
        sums[(root / found[2]).resolve()] = found[1].lower()
    listed = [file for file in sorted(files) if file.resolve() in sums]
    for file in tqdm(listed, desc="Checking sums", unit=" files", disable=None):
        seen = sha256_of(file)
        if seen != sums[file.resolve()]:
            raise ValueError(f"{file}: SHA-256 {seen}; {FILE_NAME} says {sums[file.resolve()]}, so fetch it again")
