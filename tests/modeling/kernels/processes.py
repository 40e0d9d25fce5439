"""Threads that stand in for the processes of a distributed run."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Processes:
    """Has the functions of `torch.distributed` that batches of several processes need, for threads.

    Args:
        count: Number of threads, each of which is a process.
    """

    def __init__(self, count: int):
        self.count, self.own = count, threading.local()
        self.barrier = threading.Barrier(count, timeout=20)
        self.given: list[Any] = [None] * count

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call a function with the rank of each process, in that process, and return all results."""

        def start(rank: int) -> Any:
            self.own.rank = rank
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()  # the others would wait
                raise

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(start, range(self.count)))

    def get_world_size(self) -> int:
        return self.count

    def get_rank(self) -> int:
        return self.own.rank

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.copy_(sum(self._exchanged(tensor)))

    def all_gather(self, tensors: list[torch.Tensor], tensor: torch.Tensor) -> None:
        for place, other in zip(tensors, self._exchanged(tensor), strict=True):
            place.copy_(other)

    def _exchanged(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        if not tensor.is_contiguous():
            raise ValueError("torch sends contiguous tensors only")
        self.given[self.own.rank] = tensor.detach().clone()
        self.barrier.wait()
        received = list(self.given)
        self.barrier.wait()
        return received
