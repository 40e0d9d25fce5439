"""No figure of `tests/weight.py` may rise above its stored limit."""

import json
import subprocess
import sys
import tomllib

from tests.weight import LIMITS, ROOT, weigh


def test_nothing_has_become_heavier():
    limits = json.loads(LIMITS.read_text(encoding="utf-8"))
    heavier = {name: (value, limits[name]) for name, value in weigh().items() if value > limits[name]}
    assert not heavier, f"figure and limit: {heavier}; what is lighter lowers them: python -m tests.weight --store"


def test_the_list_of_files_with_long_functions_only_gets_shorter():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    listed = [name for name, rules in ruff["per-file-ignores"].items() if rules == ["C901"]]
    limit = f"lint.mccabe.max-complexity={ruff['mccabe']['max-complexity']}"
    words = ["check", "--isolated", "--select", "C901", "--config", limit, "--output-format", "json", *listed]
    done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=ROOT, capture_output=True, text=True)
    found = {finding["filename"] for finding in json.loads(done.stdout)}
    assert [name for name in listed if str(ROOT / name) not in found] == [], "no longer needed in pyproject.toml"
