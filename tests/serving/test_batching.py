"""The queue: what is processed together, what is never begun, and what errors do."""

import threading
import time

import pytest

from hf_any3d.serving.batching import Batcher, Work
from tests.errors import raises

LATER = float("inf")


class Recorder:
    """A function that records its batches; the first waits for `begin`."""

    def __init__(self):
        self.batches, self.begin, self.entered = [], threading.Event(), threading.Event()

    def __call__(self, key, contents):
        self.entered.set()
        assert self.begin.wait(10)
        self.batches.append((key, contents))
        return [error if isinstance(error := one, Exception) else one * 10 for one in contents]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher(recorder):
    made = Batcher(recorder, max_batch=3, max_wait=0.01)
    yield made
    recorder.begin.set()
    made.close()


def submit(batcher, key, content, deadline=LATER):
    return batcher.submit(Work(key, content, deadline))


def test_equal_keys_are_gathered_in_their_order_while_the_model_is_busy(batcher, recorder):
    futures = [submit(batcher, "a", 0)]
    assert recorder.entered.wait(10)
    futures += [submit(batcher, key, number) for number, key in enumerate("abaaba", 1)]
    recorder.begin.set()
    assert [future.result(10) for future in futures] == [0, 10, 20, 30, 40, 50, 60]
    assert recorder.batches == [("a", [0]), ("a", [1, 3, 4]), ("b", [2, 5]), ("a", [6])]


def test_an_idle_model_waits_a_moment_for_others(recorder):
    recorder.begin.set()
    batcher = Batcher(recorder, max_batch=2, max_wait=5)
    start = time.monotonic()
    futures = [submit(batcher, "a", number) for number in (1, 2)]
    assert [future.result(10) for future in futures] == [10, 20] and time.monotonic() - start < 4
    batcher.close()
    assert recorder.batches == [("a", [1, 2])]


def test_canceled_and_late_work_is_not_begun(batcher, recorder):
    first = submit(batcher, "a", 0)
    assert recorder.entered.wait(10)
    canceled, late, other = (
        submit(batcher, "a", 1),
        submit(batcher, "a", 2, time.monotonic()),
        submit(batcher, "a", 3),
    )
    assert canceled.cancel()
    recorder.begin.set()
    assert (first.result(10), other.result(10)) == (0, 30)
    with pytest.raises(TimeoutError):
        late.result(10)
    assert recorder.batches == [("a", [0]), ("a", [3])]


def test_errors_reach_those_whose_they_are_and_the_queue_goes_on(recorder):
    recorder.begin.set()
    batcher = Batcher(recorder, 2, 5)
    bad, good = submit(batcher, "a", ValueError("bad")), submit(batcher, "a", 1)
    assert good.result(10) == 10
    with raises(ValueError, naming="bad"):
        bad.result(10)
    batcher.max_wait, batcher.run = 0, lambda key, contents: []
    with raises(ValueError, naming="argument 2 is longer"):
        submit(batcher, "a", 1).result(10)
    assert batcher.is_alive and batcher.seconds_per_batch >= 0
    batcher.close()
