"""Which checkpoint a run goes on from: the newest that is complete.

A run may be killed, or run out of disk, amid a save. `PointTrainer` lists the files of a checkpoint in
`checkpoint_files.json` when they are all there, and the stock Trainer writes `trainer_state.json` behind them; a
checkpoint without the one or with other files than the list says is never taken.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_any3d.atomic_files import read_json, write_json

logger = logging.getLogger(__name__)

FILE_LIST = "checkpoint_files.json"
STATE = "trainer_state.json"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def checkpoint_to_resume(output_dir: str | os.PathLike, asked: str | bool | None = None) -> str | None:
    """Find the checkpoint to go on from.

    Args:
        output_dir: Where the run keeps its checkpoints.
        asked: A checkpoint's folder; true for the newest complete one of `output_dir`, which must be there; false to
            begin anew; None for the newest complete one where there is one. Text such as "true" counts as the word it
            is.

    Returns:
        Its folder, or None. Newer ones that are incomplete are passed over with a warning.

    Raises:
        FileNotFoundError: A checkpoint was asked for that is not there.
        ValueError: The folder that was asked for is no complete checkpoint.
    """
    word = str(asked).lower()
    if word == "false":
        return None
    if asked is not None and word != "true":
        if not Path(asked).is_dir():
            raise FileNotFoundError(f"{asked}: no such checkpoint to resume from")
        if problem := why_incomplete(Path(asked)) or _what_lacks(Path(asked)):
            raise ValueError(f"{asked}: cannot be resumed from: {problem}")
        return str(asked)
    for checkpoint in newest_first(Path(output_dir)):
        problem = why_incomplete(checkpoint) or _what_lacks(checkpoint)
        if problem is None:
            return str(checkpoint)
        logger.warning("%s: passed over, since %s", checkpoint, problem)
    if word == "true":
        raise FileNotFoundError(f"{output_dir}: no checkpoint to resume from that is complete")
    return None


def newest_first(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, by the time that they were saved at.

    Steps alone would not do: a run that was begun anew in the same folder has fewer of them at first.
    """
    folders = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    steps = {path: int(found[1]) for path in folders if (found := _NAME.fullmatch(path.name))}
    times = {path: _saved_at(path) for path in steps}
    # Copies, and some file systems, have times that tell nothing.
    if times and max(times.values()) - min(times.values()) < 1.0:
        times = dict.fromkeys(steps, 0.0)
    return sorted(steps, key=lambda path: (times[path], steps[path]), reverse=True)


def why_incomplete(checkpoint: Path) -> str | None:
    """How one sees that the save of a checkpoint was interrupted, in words; None for a complete one."""
    state = read_json(checkpoint / STATE)
    if not isinstance(state, dict):
        how = "is damaged" if (checkpoint / STATE).exists() else "is missing"
        return f"its {STATE} {how}, as when a save is interrupted"
    listed = read_json(checkpoint / FILE_LIST)
    if (checkpoint / FILE_LIST).exists():
        if not isinstance(listed, dict) or not isinstance(listed.get("files"), dict):
            return f"its {FILE_LIST} is damaged"
        if state.get("global_step") != listed.get("step"):
            return f"its {STATE} is of step {state.get('global_step')}, its other files of step {listed.get('step')}"
        for name, size in listed["files"].items():
            file = checkpoint / name
            if not file.is_file():
                return f"its {name} is missing"
            if file.stat().st_size != size:
                return f"its {name} has {file.stat().st_size} bytes; expected {size}"
    # One without a list was saved by the stock Trainer, which writes the state last.
    return None


def list_files(checkpoint: Path, step: int) -> None:
    """Write down the files of a checkpoint, behind which only the trainer's state follows."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    files = {name: path.stat().st_size for name, path in sorted(files.items()) if name not in (STATE, FILE_LIST)}
    write_json(checkpoint / FILE_LIST, {"step": step, "files": files})


def make_room(output_dir: Path, step: int | None = None) -> None:
    """Remove incomplete checkpoints and, of a step that is about to be saved, an old one.

    Incomplete ones would count as checkpoints when `save_total_limit` removes the oldest, and take up the disk.
    """
    for checkpoint in newest_first(output_dir):
        problem = why_incomplete(checkpoint)
        if problem is not None:
            logger.warning("%s: removed, since %s", checkpoint, problem)
        if problem is not None or checkpoint.name == f"{PREFIX_CHECKPOINT_DIR}-{step}":
            # Without its state it is none, even if the rest is removed in part only.
            (checkpoint / STATE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _what_lacks(checkpoint: Path) -> str | None:
    for what, patterns in (
        ("weights", ("*.safetensors", "pytorch_model*", "adapter_model*", "global_step*")),
        ("state of an optimizer, as with save_only_model", ("optimizer*", "global_step*")),
    ):
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"it has no {what}"
    return None


def _saved_at(checkpoint: Path) -> float:
    file = checkpoint / STATE
    return (file if file.exists() else checkpoint).stat().st_mtime
