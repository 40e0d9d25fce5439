"""No figure of `tests/weight.py` may rise above its stored limit."""

import json

from tests.weight import LIMITS, weigh


def test_nothing_has_become_heavier():
    limits = json.loads(LIMITS.read_text(encoding="utf-8"))
    heavier = {name: (value, limits[name]) for name, value in weigh().items() if value > limits[name]}
    assert not heavier, f"figure and limit: {heavier}; what is lighter lowers them: python -m tests.weight --store"
