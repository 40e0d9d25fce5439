"""Run a training program whose last process kills itself once after a step.

Called as `dying_program.py STEP MARKER PROGRAM …`; the file MARKER is written before.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from hf_any3d.training.trainer import PointTrainer


class Die(TrainerCallback):
    """Kill the last process after a step, unless a file shows that this was done."""

    def __init__(self, step: int, marker: Path):
        self.step, self.marker = step, marker

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Die at the step."""
        if state.global_step == self.step and args.process_index == args.world_size - 1 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    step, marker, program, *words = sys.argv[1:]
    build = PointTrainer.__init__

    def build_mortal(trainer: PointTrainer, *args: Any, **kwargs: Any) -> None:
        build(trainer, *args, **kwargs)
        trainer.add_callback(Die(int(step), Path(marker)))

    PointTrainer.__init__ = build_mortal
    sys.argv = [program, *words]
    runpy.run_path(program, run_name="__main__")
