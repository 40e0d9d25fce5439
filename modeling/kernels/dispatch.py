"""Choose between the implementations of an operation."""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "HF_ANY3D_KERNELS"
SETTINGS = ("auto", "torch", "accelerator", "reference")
ACCELERATORS = ("cuda", "xpu", "meta")
"""Devices on which the number of operations decides; "meta" stands for them where operations are counted."""


def set_kernels(setting: str) -> str:
    """Choose how operations are computed in this process; the environment variable HF_ANY3D_KERNELS does the same.

    Args:
        setting: "auto" uses fused implementations wherever the table of `hf_any3d.modeling.kernels` allows it;
            "torch" the plain ones everywhere, for instance to find out whether a fused one causes a problem;
            "accelerator" those of a GPU on any device, to compare them without one; "reference" the plain ones, and
            the guided aggregation as it is defined in `hf_any3d/tuners/guided_adapter/method.py`. Code that
            `torch.compile` has traced keeps what it was traced with.

    Returns:
        The previous setting.

    Raises:
        ValueError: If the setting is another.
    """
    global _setting
    previous = _setting
    _setting = _checked(setting, "setting")
    return previous


def runs_reference() -> bool:
    """Return whether what has a definition of its own is computed by that."""
    return _setting == "reference"


def _checked(setting: str, name: str) -> str:
    if setting not in SETTINGS:
        raise ValueError(f"{name}={setting!r}; expected one of {', '.join(map(repr, SETTINGS))}")
    return setting


_setting = _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""The functions that are operators, by name. The operators have no values on "meta"; tests run these there."""


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function an operator of torch, `torch.ops.hf_any3d.NAME`, which compilers call without tracing it.

    `torch.library.custom_op` does the same, but reads the sources of all imported modules: 0.1 s of the package's
    import. The shapes of the results are registered with `torch.library.impl("hf_any3d::NAME", "Meta")`.
    """

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        # Compilers may reorder and drop calls of what changes none of its arguments.
        torch.library.define(f"hf_any3d::{name}", torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(f"hf_any3d::{name}", "default", function)
        IMPLEMENTATIONS[name] = function
        return getattr(torch.ops.hf_any3d, name).default

    return define


def statistics_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the dtype to sum statistics of values in.

    Double precision costs nothing for the few numbers summed on the CPU. Accelerators compute it at up to 1/64 of the
    speed, some not at all; there single precision is enough, as they sum in trees.
    """
    return torch.promote_types(values.dtype, torch.float64 if values.device.type == "cpu" else torch.float32)


def _is_autocast_enabled(device: str) -> bool:
    # Torch raises an error for devices without autocast, such as "meta".
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def is_exporting() -> bool:
    """Return whether an exporter traces this code, and no compiler."""
    # `torch.compiler.is_exporting`, but for compilers of torch 2.10 and 2.11, which take that for true.
    return torch.compiler._is_exporting_flag


def autocast_disabled(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without autocast, for results that half precision would falsify."""
    # Torch raises an error for devices without autocast, such as "meta". Compilers of torch 2.10 and 2.11 cannot trace
    # the question, and devices that they compile for have autocast.
    if device.type == "meta":
        return nullcontext()
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def without_autocast(backward: Callable[..., R]) -> Callable[..., R]:
    """Wrap the backward pass of a fused implementation, which autocast would round if it is called inside of it."""

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Any) -> R:
        # One of the gradients may be a list; those of outputs that nothing depends on are None.
        flat = [part for gradient in gradients for part in (gradient if isinstance(gradient, list) else [gradient])]
        device = next((gradient.device.type for gradient in flat if gradient is not None), None)
        if device is None or not _is_autocast_enabled(device):
            return backward(ctx, *gradients)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *gradients)

    return wrapper


def recomputed(function: Callable[P, Tensor], *args: P.args, **kwargs: P.kwargs) -> Tensor:
    """Call a cheap function without randomness whose intermediate results are computed again for the backward pass."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*args, **kwargs)  # compilers decide themselves what they save
    return checkpoint(function, *args, **kwargs, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True, eq=False)
class Kernel(Generic[P, R]):
    """An operation with a plain implementation and faster ones; calling it runs one of them.

    The first argument has a `device`.

    Args:
        plain: Implementation in plain torch; documents the arguments.
        fused: Implementation of the same signature that saves time or memory.
        reason: When the fused implementation is not used, and why.
        devices: Types of the devices on which the fused implementation is used; None for all.
        compiles: Whether compilers and exporters can trace the fused implementation.
        condition: Whether the fused implementation computes what the plain one does, from the arguments; None for
            always.
        traced: What compilers and exporters are given instead of both; None for one of both.
        result_in_autocast: Whether the plain implementation returns autocast's dtype under autocast. The fused one
            always runs with autocast disabled, in the precision of its arguments or better.
    """

    plain: Callable[P, R]
    fused: Callable[P, R]
    reason: str
    devices: tuple[str, ...] | None = None
    compiles: bool = True
    condition: Callable[P, bool] | None = None
    traced: Callable[P, R] | None = None
    result_in_autocast: bool = False

    def is_chosen_on(self, device: torch.device) -> bool:
        """Return whether the setting and the device, if not the arguments, allow the fused implementation."""
        # The setting counts before the device: "accelerator" stands for a GPU, whatever the device is.
        if _setting in ("torch", "reference") or (torch.compiler.is_compiling() and not self.compiles):
            return False
        return self.devices is None or ("cuda" if _setting == "accelerator" else device.type) in self.devices

    def uses_fused(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Return whether a call with these arguments runs the fused implementation."""
        first: Any = args[0]
        return self.is_chosen_on(first.device) and (self.condition is None or self.condition(*args, **kwargs))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the operation."""
        # Before the conditions, which may read values that a compiler does not have.
        if self.traced is not None and torch.compiler.is_compiling():
            return self.traced(*args, **kwargs)
        if not self.uses_fused(*args, **kwargs):
            return self.plain(*args, **kwargs)
        device: Any = args[0].device.type
        if not _is_autocast_enabled(device):
            return self.fused(*args, **kwargs)
        # Autocast would round the inputs of every product inside, those of sums and statistics among them.
        with torch.autocast(device, enabled=False):
            result = self.fused(*args, **kwargs)
        # Later layers find the dtype that the plain implementation would have given them.
        return result.to(torch.get_autocast_dtype(device)) if self.result_in_autocast else result
