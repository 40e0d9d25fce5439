"""Lists of names that come with benchmarks: which models a split has, what the classes are called."""

from pathlib import Path

from hf_any3d.data.files import PointCloudFileError

LONGEST_LINE = 1000


def read_lines(path: Path) -> list[str]:
    """Read the lines of a short text file, without those that are empty and without white space around them.

    Raises:
        PointCloudFileError: no such file, no text, or lines too long to be names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PointCloudFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise PointCloudFileError(f"{path}: no list of names; byte {error.start} is no UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE or "\0" in line:
            raise PointCloudFileError(f"{path}: line {number} is {line[:40]!r}…; expected a name")
    return [line for line in lines if line]
