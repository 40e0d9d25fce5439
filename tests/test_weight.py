"""No figure of `tests/weight.py` may rise above its stored limit."""

import json
import subprocess
import sys

from tests.weight import LIMITS, PRODUCT, ROOT, weigh


def test_nothing_has_become_heavier():
    limits = json.loads(LIMITS.read_text(encoding="utf-8"))
    heavier = {name: (value, limits[name]) for name, value in weigh().items() if value > limits[name]}
    assert not heavier, f"figure and limit: {heavier}; what is lighter lowers them: python -m tests.weight --store"


def test_no_function_has_more_than_fifteen_ways_through_it():
    limit = "lint.mccabe.max-complexity=15"
    words = ["check", "--isolated", "--select", "C901", "--config", limit, "--output-format", "concise", *PRODUCT]
    done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"give the steps of a long function names: {done.stdout}"
