"""Errors that depend on values on an accelerator, raised without waiting for it."""

from collections import deque

import torch
from torch import Tensor

# Checks whose results are on their way to the host: when it has arrived, the result, and the error's message.
_pending: deque[tuple[torch.Event, Tensor, str]] = deque()


def refuse_later(failed: Tensor, message: str) -> None:
    """Raise an error in a later call if a check of values on an accelerator has `failed`, a boolean there.

    Waiting for a value would cost every training step the time that the host could have run ahead. So it is copied in
    the background, and calls raise the errors of copies that have arrived. Nothing is checked on "meta", in compiled
    code and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or (failed.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    # In the order of the batches; a copy that has not arrived is left for a later call.
    while _pending and _pending[0][0].query():
        _, has_failed, earlier = _pending.popleft()
        if has_failed:
            _pending.clear()
            raise ValueError(earlier)
    if failed.is_meta:
        return
    copy = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(failed, non_blocking=True)
    arrival = torch.Event(failed.device)
    arrival.record()
    _pending.append((arrival, copy, message))
