"""Fuzz from the command line; see the package."""

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run targets, print a line for each and return the exit status."""
    # The local hub of the tests must exist before huggingface_hub is imported.
    from tests import conftest
    from tests.fuzz import run, targets
    from tests.fuzz.runner import generator_of

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    known = targets()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    default = int(os.environ.get("HF_ANY3D_MUTATIONS", 10_000))
    parser.add_argument("--inputs", type=int, default=default, help=f"how many of each ({default})")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (0)")
    parser.add_argument("--only", type=int, help="read this input alone, in this process")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names or known]
    try:
        if options.only is not None:
            for target in chosen:
                with tempfile.TemporaryDirectory() as scratch:
                    seeds, folder = Path(scratch, "prepared"), Path(scratch, "input")
                    seeds.mkdir()
                    folder.mkdir()
                    target.prepare(seeds)
                    case = target.make(generator_of(target, options.only), folder)
                    print(target.describe(case), flush=True)
                    target.attempt(case, folder)
            return 0
        failed = 0
        for target in chosen:
            report = run(target, options.inputs, first=options.first)
            print(report.explain() if report.failures else report, flush=True)
            failed += len(report.failures)
        return int(failed > 0)
    finally:
        conftest.pytest_unconfigure(None)


if __name__ == "__main__":
    sys.exit(main())
