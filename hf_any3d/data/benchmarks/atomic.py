"""Files that are there whole or not at all."""

import json
import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, after what it holds has reached the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON under a temporary name, then rename.

    Raises:
        OSError: the disk is full or cannot be written; names the file. Nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        publish(temporary, path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> object | None:
    """Read JSON; None when there is no file, or one that an interruption left unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process was writing in `folder`; nobody else may write there now."""
    for file in folder.glob("*/.*.tmp"):
        file.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> OSError:
    """The same error with the name of the file that could not be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{path} could not be written ({reason}); nothing of it was kept")
