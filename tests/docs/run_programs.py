"""Run programs in one process and the current folder: `python -m tests.docs.run_programs FILE`.

FILE is a JSON object of names and programs. They run one after the other. Every failure is printed, and the exit code
is 1.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

import torch


def main(programs: dict[str, str]) -> int:
    """Run all programs; returns the number of failures."""
    torch.set_num_threads(1)
    failures = 0
    for name, program in programs.items():
        start = time.perf_counter()
        try:
            exec(compile(program, name, "exec"), {"__name__": "__main__"})
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        except BaseException:
            failures += 1
            print(f"{name} FAILED\n{traceback.format_exc()}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
