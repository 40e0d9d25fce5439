import numpy as np
import pytest

from tests.fuzz.damage import TooLong, bounded, mutate, traced

TEXT = b"ply\nformat ascii 1.0\nelement vertex 4\n" + b"1 2 3\n" * 200


def test_the_same_seed_gives_the_same_damage_and_most_inputs_differ():
    def some(seed):
        generator = np.random.default_rng(seed)
        return [mutate(TEXT, generator, b"OFF\n4 2 0\n") for _ in range(300)]

    first = some(0)
    assert first == some(0) and first != some(1)
    assert len(set(first) - {TEXT}) > 200 and max(map(len, first)) < 9 * len(TEXT)
    for telling in (b"999999999999", b"nan", b"1e400", b"OFF"):
        assert any(telling in damaged for damaged in first + some(1) + some(2)), telling


def test_endless_work_is_stopped():
    with pytest.raises(TooLong, match=r"more than 0\.05 seconds"), bounded(seconds=0.05) as begin:
        begin()
        while True:
            pass


def test_memory_that_is_only_asked_for_counts():
    with bounded(megabytes=256), pytest.raises(MemoryError):
        np.zeros(1 << 31, np.uint8)
    assert np.zeros(1 << 31, np.uint8).nbytes == 1 << 31
    with traced() as peak:
        np.zeros(1 << 27, np.uint8)
        assert peak() >= 1 << 27
        assert peak() < 1 << 20
