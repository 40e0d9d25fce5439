"""Training steps in fewer launches on a GPU: layers that are compiled, and steps that are captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_any3d.modeling.layers.compilation import compile_methods
from hf_any3d.training.arguments import CAPTURED
from hf_any3d.tuners.targets import layer_stack

Capture = Callable[..., Any]


def compile_layers(model: nn.Module, **options: Any) -> int:
    """Let torch compile each layer of a model's encoder, with its adapters, when it first runs; returns their number.

    Layers of a kind run the same code, so that one of them is compiled (regional compilation). Names of parameters
    stay. `options` are those of `torch.compile`.
    """
    layers = layer_stack(model).layers
    for layer in layers:
        layer.compile(**options)
    # What precedes and follows the layers
    for module in model.modules():
        compile_methods(module, **options)
    return len(layers)


class CapturedSteps:
    """Losses of training batches, computed and differentiated by one CUDA graph.

    A graph repeats the kernels of the batch that it was captured with, for batches of the same shapes. Others, such as
    the last one of an epoch, run without. What the host computes is not repeated: numbers that change from step to
    step must be tensors. Gradients are in memory that the next step overwrites, so they cannot be accumulated.

    Args:
        model: Model in training, whose trained parameters stay the same.
        core: The model inside of wrappers and adapters.
        capture: Captures a module, given tensors of its size.
    """

    def __init__(self, model: nn.Module, core: nn.Module, capture: Capture = torch.cuda.make_graphed_callables):
        if getattr(getattr(core, "config", None), "model_type", None) not in CAPTURED:
            raise ValueError(
                f"--cuda_graphs: {type(core).__name__} is not captured; expected a model of {' or '.join(CAPTURED)}"
            )
        self._model = model
        self._capture = capture
        self._shapes: Any = None
        self._replay: Callable[..., torch.Tensor] | None = None

    def loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the loss of a batch, on the model's device."""
        leaves, structure = tree_flatten(dict(inputs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # What must be equal for the graph to be repeated: structure, sizes, and all that is no tensor.
        sizes = [(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        shapes = structure, sizes
        # Captured with the first batch, whose sizes it then repeats.
        if self._replay is None:
            if self._model._forward_pre_hooks:
                raise ValueError("--cuda_graphs: this training passes numbers that change from step to step")
            self._shapes = shapes
            self._replay = self._captured(leaves, structure, tensors)
        if shapes != self._shapes:
            return self._model(**inputs)["loss"]
        return self._replay(*tensors)

    def _captured(self, leaves: list[Any], structure: TreeSpec, tensors: list[torch.Tensor]) -> Callable:
        kept = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        # The graph reads its inputs from the tensors that it was captured with.
        own = tuple(tensor.clone() for tensor in tensors)
        replay = self._capture(_Loss(self._model, leaves, structure), own, allow_unused_input=True)
        with torch.no_grad():
            # Statistics of norms have counted the batch several times before it was captured.
            for name, buffer in self._model.named_buffers():
                buffer.copy_(kept[name])
        return replay


class _Loss(nn.Module):
    """The loss of a model as a function of tensors alone."""

    def __init__(self, model: nn.Module, leaves: list[Any], structure: TreeSpec):
        super().__init__()
        self.model = model
        self._structure = structure
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return self.model(**tree_unflatten(leaves, self._structure))["loss"]
