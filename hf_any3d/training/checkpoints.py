"""Find the newest complete checkpoint to resume from.

A run may be killed, or run out of disk space, while saving. `PointTrainer` lists the files of a checkpoint in
`checkpoint_files.json` once all are written, and the stock Trainer writes `trainer_state.json` last; a checkpoint
without the latter, or with other files than listed, is never used.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_any3d.utils.atomic_files import read_json, write_json

logger = logging.getLogger(__name__)

FILE_LIST = "checkpoint_files.json"
STATE = "trainer_state.json"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def checkpoint_to_resume(output_dir: str | os.PathLike, requested: str | bool | None = None) -> str | None:
    """Find the directory of the checkpoint to resume from; newer incomplete ones are skipped with a warning.

    Args:
        output_dir: Output directory of the run.
        requested: Directory of a checkpoint; true for the newest complete one of `output_dir`, which must exist; false
            to start again; None for the newest complete one, if any. "true" and "false" may be text.
    """
    # From a command line the words true and false are text.
    word = str(requested).lower()
    if word == "false":
        return None
    if requested is not None and word != "true":
        path = Path(str(requested))
        if not path.is_dir():
            raise FileNotFoundError(f"{requested}: no such checkpoint to resume from")
        # A checkpoint that is named is never replaced by another one.
        problem = find_problem(path) or _missing_files(path)
        if problem:
            raise ValueError(f"{requested}: cannot be resumed from: {problem}")
        return str(requested)
    for checkpoint in newest_first(Path(output_dir)):
        problem = find_problem(checkpoint) or _missing_files(checkpoint)
        if problem is None:
            return str(checkpoint)
        logger.warning("%s is skipped: %s", checkpoint, problem)
    if word == "true":
        raise FileNotFoundError(f"{output_dir}: no complete checkpoint to resume from")
    return None


def newest_first(output_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, complete or not, newest first by modification time.

    Not by steps: a run that was started again in the same directory has lower ones at first.
    """
    folders = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    steps = {path: int(found[1]) for path in folders if (found := _NAME.fullmatch(path.name))}
    states = {path: path / STATE for path in steps}
    # The state is written last; without it the folder's own time counts.
    times = {path: (state if state.exists() else path).stat().st_mtime for path, state in states.items()}
    # Copies, and some file systems, do not keep modification times.
    if times and max(times.values()) - min(times.values()) < 1.0:
        times = dict.fromkeys(steps, 0.0)
    # By time first: a run that was started again in the same directory has higher steps in its old checkpoints.
    return sorted(steps, key=lambda path: (times[path], steps[path]), reverse=True)


def find_problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint is incomplete; None if it is complete."""
    state = read_json(checkpoint / STATE)
    if not isinstance(state, dict):
        problem = "damaged" if (checkpoint / STATE).exists() else "missing"
        return f"its {STATE} is {problem}, as after an interrupted save"
    # Files are compared by their sizes, which an interrupted copy changes.
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
    # The stock Trainer writes no list, and the state last.
    return None


def list_files(checkpoint: Path, step: int, rows_per_step: int | list[int] | None = None) -> None:
    """Write the list of a checkpoint's files, its step and the rows of a step, when only the state is missing."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    files = {name: path.stat().st_size for name, path in sorted(files.items()) if name not in (STATE, FILE_LIST)}
    write_json(checkpoint / FILE_LIST, {"step": step, "rows_per_step": rows_per_step, "files": files})


def check_run(checkpoint: Path, model: nn.Module, rows_per_step: int | list[int]) -> None:
    """Check that a run may resume from a checkpoint: of its kind of model and stage, and as many rows in a step.

    With other rows, in however many processes, the run would go on at another row and at another place in the schedule
    of the learning rate. Another control of the model's encoder is another kind.
    """
    # Name of a setting, its value in the checkpoint, and the one now
    compared: list[tuple[str, Any, Any]] = []
    stored = read_json(checkpoint / "config.json")
    config = getattr(model, "config", None)
    if isinstance(stored, dict) and isinstance(config, PreTrainedConfig):
        for name in ("model_type", "stage"):
            compared.append((name, stored.get(name), getattr(config, name, None)))
        control = ((stored.get("parts") or {}).get("encoder") or {}).get("control")
        compared.append(("encoder_weights", control or "pretrained", getattr(config, "encoder_weights", "pretrained")))
    listed = read_json(checkpoint / FILE_LIST)
    # Checkpoints of the stock Trainer have no list, and are not compared.
    if isinstance(listed, dict) and listed.get("rows_per_step") is not None:
        compared.append(("rows_per_step", listed["rows_per_step"], rows_per_step))
    for name, before, now in compared:
        if before != now:
            raise ValueError(
                f"{checkpoint} has {name} {before!r}, and this run {now!r}; use another --output_dir, or "
                "--resume_from_checkpoint false to start again"
            )


def remove_incomplete(output_dir: Path, step: int | None = None) -> None:
    """Remove incomplete checkpoints, and an old one of the step that is about to be saved.

    Incomplete ones would count for `save_total_limit`, and take disk space.
    """
    for checkpoint in newest_first(output_dir):
        problem = find_problem(checkpoint)
        if problem is not None:
            logger.warning("%s is removed: %s", checkpoint, problem)
        if problem is not None or checkpoint.name == f"{PREFIX_CHECKPOINT_DIR}-{step}":
            # Without its state it is incomplete, even if removing the rest is interrupted.
            (checkpoint / STATE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _missing_files(checkpoint: Path) -> str | None:
    for what, patterns in (
        ("weights", ("*.safetensors", "pytorch_model*", "adapter_model*", "*/adapter_model*", "global_step*")),
        ("state of an optimizer, as with save_only_model", ("optimizer*", "global_step*")),
    ):
        # DeepSpeed writes weights and optimizer to a folder global_step….
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"it has no {what}"
    return None
