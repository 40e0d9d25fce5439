"""`hf-any3d detect`: boxes around the objects of scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hf_any3d.cli.ask import ask
from hf_any3d.cli.inputs import Files
from hf_any3d.cli.options import BatchSize, Device, FileOptions, Model, option, output_option
from hf_any3d.cli.runs import RunOptions
from hf_any3d.cli.task_options import Settings, options_of
from hf_any3d.tasks.detection.about import TASK


@dataclass(frozen=True, kw_only=True)
class _FrameOptions(Settings):
    """An option for what has two forms in Python: whether a frame is found, or which parts of it."""

    align_parts: Annotated[
        str | None,
        option("For layout models: which steps of frame alignment to apply, from up_axis,level,unit,floor,turn."),
    ] = None

    def values(self) -> dict[str, Any]:
        """Return the settings by their names."""
        found = super().values()
        # The parts of a frame are named only by those who want it found.
        if self.align_parts is not None:
            # Imported here alone, as it takes a second.
            from hf_any3d.data.frames.scan_frames import frame_parts

            found["align"] = list(frame_parts(self.align_parts, "--align-parts"))
        return found


BoxOptions = Annotated[Any, options_of(TASK.settings, base=_FrameOptions)]


def detect(
    files: Files,
    asked: BoxOptions,
    options: FileOptions,
    runs: RunOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        output_option(
            "Write the boxes as a table (.json, .csv; resumable runs also .jsonl, .parquet), an HTML page (.html) "
            "or an image (.png)."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Detect objects in scans and print an oriented box for each.

    Boxes use the coordinates and units of the file: center, size (length, width, height) and heading, in radians,
    counterclockwise about the up axis. Scores are not calibrated; layout models such as SpatialLM have no scores.
    """
    ask(TASK.name, files, model, asked.values(), options, runs, output, batch_size, device)
