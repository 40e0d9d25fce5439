"""Files of answers and verdicts that are complete at any time, so that interrupted work goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_results(path: Path) -> dict[str, Any]:
    """Read a file `{"prompt": …, "results": [{"object_id", …}]}`, ours or one of the published programs.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It holds something else, or an object twice.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    results = stored.get("results") if isinstance(stored, dict) else None
    if not isinstance(results, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("object_id"), (str, int)) for entry in results
    ):
        raise ValueError(f'{path}: expected {{"prompt": …, "results": […]}} with an object_id in each result')
    if len({entry["object_id"] for entry in results}) < len(results):
        raise ValueError(f"{path}: an object_id is there twice; expected each object once")
    return stored


def continued(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results that an earlier run of the same kind left in a file; none where there is no file.

    Args:
        path: The file.
        header: What must be the same for results to be of the same kind.

    Raises:
        ValueError: The file is of another kind; says what differs.
    """
    if not path.is_file():
        return []
    stored = read_results(path)
    wanted = json.loads(json.dumps(dict(header)))
    for key, value in wanted.items():
        if stored.get(key) != value:
            raise ValueError(
                f"{path}: was made with {key} {stored.get(key)!r}, now it is {value!r}; expected the same or another "
                "folder"
            )
    return stored["results"]
