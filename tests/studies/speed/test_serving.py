"""The load on a server: rates, statuses, quantiles, and what counts as a failure."""

import asyncio
from dataclasses import replace

import pytest

from studies.speed.serving import Measured, check, closed_loop, open_loop, summary, table

FINE = Measured(10, 10, {200: 10}, 0.01, 0.02, 0.03)
OVERLOADED = Measured(25, 10, {200: 10, 429: 15}, 0.5, 0.6, 0.7)


def test_loads_send_what_they_promise_and_time_answers_alone():
    async def send():
        await asyncio.sleep(0.01)
        return 200

    measured = asyncio.run(open_loop(send, 100, 0.2))
    assert measured.statuses == {200: 20} and 40 < measured.offered < 130 and measured.p50 >= 0.01
    waiting = asyncio.run(closed_loop(send, 2, 0.1))
    assert waiting.offered == waiting.answered > 0 and set(waiting.statuses) == {200}
    mixed = summary([(200, 1.0), (429, 0.0), (200, 3.0)], 2.0, 5.0)
    assert (mixed.offered, mixed.answered, mixed.p50) == (5.0, 1.0, 2.0) and mixed.statuses == {200: 2, 429: 1}


def test_failures_at_overload_and_after_it_are_found():
    rows = [FINE, FINE, FINE, OVERLOADED, FINE]
    check(rows)
    assert "| 4 of that | 25 | 10 | 60 % | 500 ms | 600 ms | 700 ms |" in table(rows, FINE)
    for changed, message in (
        ([*rows[:3], replace(OVERLOADED, statuses={200: 1, 429: 1, 500: 1}), FINE], "expected 200 and 429 alone"),
        ([*rows[:3], FINE, FINE], "was refused at overload"),
        ([*rows[:4], OVERLOADED], "after the overload"),
        ([*rows[:4], replace(FINE, p50=0.9)], "median 0.900 s after the overload"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(changed)
