"""No model makes an accelerator wait for the host, or the host for an accelerator, in a training step.

The test runs without an accelerator: tensors on "meta" have no values, and a watched operation on them shows where a
program would read one or send one. Functions of this package's operators are run in place of the operators.
"""

import traceback
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hf_any3d.modeling import deferred_errors
from hf_any3d.modeling.deferred_errors import refuse_later
from hf_any3d.modeling.kernels.dispatch import IMPLEMENTATIONS
from hf_any3d.modeling.layers.constants import constant
from tests.common.built import over_one_of_each
from tests.common.models import CASES, Case, registered_classes
from tests.common.refusals import check_refusal
from tests.errors import raises
from tests.turns import ALL_PAIRS

# Operations whose result, or its shape, depends on values.
READS_VALUES = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
# A mask of patches must be counted, if the caller gives it; and transformers looks for padding in attention masks.
READ_ON_PURPOSE = ("mask", "attention_mask")


class Watch(TorchDispatchMode):
    """Record what an accelerator would wait for, and where."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, inputs = func.overloadpacket.__name__, _tensors((args, kwargs))
        if func.namespace == "hf_any3d":
            with self:
                return IMPLEMENTATIONS[name](*args, **(kwargs or {}))
        on_meta = any(tensor.is_meta for tensor in inputs)
        if name in READS_VALUES and on_meta:
            self.record(f"{name} reads values")
        is_indexed = name == "index" or (name == "index_put_" and args[2].numel() > 1)  # one number is filled in
        if is_indexed and any(index.dtype == torch.bool for index in _tensors(args[1])):
            self.record("an index of booleans reads values")
        if name == "batch_norm_update_stats" and on_meta:  # torch has no kernel for "meta"
            return tuple(torch.empty_like(args[0][0]) for _ in range(2))
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        if not inputs and any(not tensor.is_meta for tensor in outputs):
            self.record(f"{name} makes a tensor on the CPU")
        if any(tensor.dtype == torch.float64 for tensor in outputs):
            self.record(f"{name} computes in double precision")
        if any(tensor.is_meta for tensor in outputs) and any(not tensor.is_meta for tensor in inputs):
            self.record(f"{name} sends a tensor from the CPU")
        return result

    def record(self, what: str) -> None:
        """Add a finding with the line of the package that caused it."""
        frames = [frame for frame in traceback.extract_stack() if "/modeling/" in frame.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "outside of modeling"
        self.found.add(f"{where}: {what}")


class WatchConstants(TorchFunctionMode):
    """Record lists and arrays of the host that are sent to an accelerator, which no operation shows."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor", "asarray", "new_tensor") and result.is_meta and result.numel():
            if not isinstance(args[-1], torch.Tensor):
                self.watch.record(f"{name} sends numbers from the host")
        if name in ("__getitem__", "__setitem__") and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | tuple | range | np.ndarray) for part in index):
                self.watch.record("an index by a list is sent from the host")
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def test_the_watch_finds_what_waits():
    value = torch.ones(2, device="meta")
    with Watch() as watch, WatchConstants(watch):
        value + torch.ones(())
        torch.ones(2).to("meta")
        value[[0, 1]], value.new_tensor([1.0])
        constant([[1.0, 2.0]], value)  # does not wait
        for wait in (lambda: value.sum().item(), lambda: value.nonzero(), lambda: value[value > 0]):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wait()
    found = {what.split(": ")[1] for what in watch.found}
    assert {"ones makes a tensor on the CPU", "_local_scalar_dense reads values", "nonzero reads values"} <= found
    assert any("sends a tensor" in what for what in found)
    assert any("index of booleans" in what for what in found)
    assert {what for what in found if "host" in what} == {
        "an index by a list is sent from the host",
        "new_tensor sends numbers from the host",
    }


def is_tried(case: Case) -> bool:
    """Whether a class takes the step by itself: a body takes it in its heads, which have a loss."""
    return ALL_PAIRS or case.labels is not None or len(registered_classes(case.model_class.config_class)) == 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@over_one_of_each(2, list(filter(is_tried, CASES)))
def test_a_training_step_never_waits(case: Case):
    model = case.build().to("meta").train()
    inputs = case.labeled() if case.labels else case.batch()
    inputs = {name: value for name, value in inputs.items() if name not in READ_ON_PURPOSE}
    inputs = tree_map(lambda value: value.to("meta"), inputs)
    watch = Watch()
    with check_refusal("no waiting", case.name) as is_supported:
        for _ in range(2):  # the first step may fill caches
            watch.found.clear()
            with watch, WatchConstants(watch):
                output = model(**inputs)
                target = output.loss if case.labels else case.answer_of(output).float().sum()
                if target.requires_grad:  # not in a model whose parts are all frozen
                    target.backward()
    assert not is_supported or not watch.found


class _Arrival:
    """An event of an accelerator that happens when the test says so."""

    happened = False

    def query(self) -> bool:
        return self.happened


def test_a_failed_check_raises_in_the_first_call_after_its_result_has_arrived(monkeypatch):
    arrival = _Arrival()
    pending = deferred_errors._pending
    monkeypatch.setattr(deferred_errors, "_pending", type(pending)([(arrival, torch.tensor(True), "bad cloud")]))
    passed = torch.empty((), dtype=torch.bool, device="meta")
    refuse_later(passed, "other")
    arrival.happened = True
    with raises(ValueError, naming="bad cloud"):
        refuse_later(passed, "other")
    refuse_later(passed, "other")
