"""Methods that torch may compile for training; a call reads as a call of the method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

Method = TypeVar("Method", bound=Callable[..., Any])


def compilable(method: Method) -> Method:
    """Let `compile_methods` compile a method of a module for training; without it, the method runs as it stands."""
    name = _name_of(method)

    @functools.wraps(method)
    def call(self: nn.Module, *args: Any) -> Any:
        compiled = vars(self).get(name) if self.training else None
        if compiled is None:
            return method(self, *args)
        # Code for batches of any size, instead of again for each: the first axis of all tensors is the batch.
        for value in tree_leaves(args):
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return compiled(self, *args)

    call.is_compilable = True  # pyright: ignore[reportFunctionMemberAccess]
    return call  # pyright: ignore[reportReturnType]


def compile_methods(module: nn.Module, **options: Any) -> None:
    """Compile the compilable methods of a module, by options of `torch.compile`."""
    for name in dir(type(module)):
        method = getattr(type(module), name)
        if getattr(method, "is_compilable", False):
            vars(module)[_name_of(method)] = torch.compile(method.__wrapped__, **options)


def is_compiled(module: nn.Module) -> bool:
    """Return whether methods of a module run compiled code now, which leaves values unchecked."""
    return module.training and any(name.startswith("_compiled_") for name in vars(module))


def _name_of(method: Callable[..., Any]) -> str:
    """Return the attribute that has the compiled code of a method."""
    return f"_compiled_{method.__name__.lstrip('_')}"
