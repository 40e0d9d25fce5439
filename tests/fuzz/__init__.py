"""Hostile input of every kind, read in child processes under a guard of time, memory and execution.

A `Target` is one kind of input: how to make a hostile one from a random generator, and what reads it. Each input is
read in a child forked from this process once the target is prepared, so nothing is imported again. A child reads one
input after the other until it dies, is killed or has read `Target.batch` of them; then the next is forked. Of every
input the runner reports one of:

| outcome | meaning |
|---|---|
| accepted | `attempt` returned |
| refused | `attempt` raised one of `Target.refusals`, and `check_refusal` accepted its text |
| uncaught | any other exception, a failed assertion, or the death of the child (signal, abort, exit) |
| slow | more than `Target.seconds` of CPU time, with all processes that it started, or 12 times that in wall time |
| big | more than `Target.megabytes` of memory beyond that of the child, resident or requested at once |
| executed | an event of `Target.forbidden` (Python's audit events), or the file `canary(folder)` exists afterwards |

To add a kind: write `tests/fuzz/fuzz_<what>.py` with a list `TARGETS` of instances of your subclass of `Target`. It is
found by its name.

    class JudgeReplies(Target):
        name, refusals, inputs = "judge replies", (JudgeError,), 200   # `inputs`: how many the test suite tries

        def prepare(self, folder):               # once, in the parent: make seeds, import and run what reading needs
            self.seeds = [...]

        def make(self, generator, folder):       # one input; the same generator state must give the same input
            return mutate(generator.choice(self.seeds), generator)

        def attempt(self, case, folder):         # in the child; `folder` is empty and removed afterwards
            parse_reply(case)

    TARGETS = [JudgeReplies()]

Commands:

    python -m tests.fuzz [NAME …] [--inputs N]     # a line a target; exit 1 if any input failed
    python -m tests.fuzz NAME --only 4711          # that input in this process, with its traceback
    make fuzz                                      # 10,000 of each (HF_ANY3D_MUTATIONS)

`tests/fuzz/test_targets.py` tries `Target.inputs` of each in the test suite, or HF_ANY3D_MUTATIONS.
"""

from tests.fuzz.damage import mutate
from tests.fuzz.runner import Report, run
from tests.fuzz.target import Target, canary

__all__ = ["Report", "Target", "canary", "mutate", "run", "targets"]


def targets() -> dict[str, Target]:
    """Find the targets of all modules `fuzz_*.py` of this package, by name.

    Raises:
        ValueError: two targets of one name.
    """
    from importlib import import_module
    from pkgutil import iter_modules

    found: dict[str, Target] = {}
    for module in sorted(info.name for info in iter_modules(__path__) if info.name.startswith("fuzz_")):
        for target in import_module(f"{__name__}.{module}").TARGETS:
            if target.name in found:
                raise ValueError(f"two fuzz targets are called {target.name!r}")
            found[target.name] = target
    return found
