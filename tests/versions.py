"""Try the oldest and the newest releases of Hugging Face's libraries that setup.cfg allows: `make test-versions`.

Makes an environment for each in `build/versions`, on top of the one that runs this, so that only what differs is
installed, and runs tests there of what people do: classify, train, adapt, chat, save, push and open.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("datasets", "huggingface-hub", "peft", "transformers")
TESTS = (
    "chat/test_session.py",
    "common/test_every_encoder.py",
    "data/parquet/test_publishing.py",
    "hub/test_sharing.py",
    "model_card/test_saving.py",
    "pipelines/test_point_cloud_classification.py",
    "test_entry_points.py",
    "training/test_trainer_entry_points.py",
    "tuners/test_guided_adapter.py",
)


def requirements(end: str) -> list[str]:
    """Return what setup.cfg requires of the libraries; for the oldest end, the first release of each."""
    options = configparser.ConfigParser(interpolation=None)
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = options["options"]["install_requires"].split()
    wanted = [line for line in lines if re.split("[<>=]", line)[0] in LIBRARIES]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in wanted] if end == "oldest" else wanted


def environment(end: str) -> Path:
    """Return the interpreter of one end; an environment of the same requirements is used again."""
    folder, base, wanted = ROOT / "build" / "versions" / end, sysconfig.get_path("purelib"), requirements(end)
    python, made_of = folder / "bin" / "python", folder / "made_of.txt"
    if made_of.is_file() and made_of.read_text().split("\n") == [base, *wanted]:
        return python
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # Behind its own packages come those of this environment, torch and pip among them.
    (site / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted], check=True)
    made_of.write_text("\n".join([base, *wanted]))
    return python


def main() -> int:
    """Run the tests with both ends; return 1 if any fails."""
    failed = False
    tests, variables = [str(ROOT / "tests" / test) for test in TESTS], {**os.environ, "PYTHONPATH": str(ROOT)}
    for end in ("oldest", "newest"):
        python = environment(end)
        program = (
            f"from importlib.metadata import version as of; print({end!r}, *(n + ' ' + of(n) for n in {LIBRARIES}))"
        )
        subprocess.run([python, "-c", program], check=True)
        done = subprocess.run(
            [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *tests, *sys.argv[1:]], env=variables
        )
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
