"""Every registered kind of hostile input, a few hundred of each; `make fuzz` tries ten thousand."""

import pytest

from tests.fuzz import run, targets
from tests.fuzz.damage import mutations

TARGETS = targets()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_read_or_refused_in_bounded_time_and_memory_and_nothing_is_executed(name):
    target = TARGETS[name]
    report = run(target, mutations(target.inputs))
    print(report)
    assert not report.failures, report.explain()
    assert report.counts["refused"], "nothing hostile was made"
