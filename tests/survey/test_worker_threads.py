"""Work on several items at once."""

import pytest
import torch

from hf_any3d_survey.worker_threads import in_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_are_in_order_and_each_thread_computes_alone(two_threads):
    results = [*in_threads(lambda item: (item, torch.get_num_threads()), iter(range(50)), 2)]
    assert results == [(item, 1) for item in range(50)]
    assert torch.get_num_threads() == 2


def test_errors_are_those_of_the_function(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [1, 0, 2], 2))
    assert torch.get_num_threads() == 2
