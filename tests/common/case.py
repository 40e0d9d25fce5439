"""A model class with its tiny model, inputs and labels, for the common suites; `models.py` has one for each class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

POINTS = 48


def varied_clouds(batch: int = 3, points: int = POINTS, channels: int = 3, seed: int = 2) -> torch.Tensor:
    """Clouds `(batch, points, channels)` of different shapes: boxes, plates and bars, near the unit sphere."""
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.rand(batch, points, channels, generator=generator) * 2 - 1
    clouds[..., :3] *= 0.1 + 0.9 * torch.rand(batch, 1, 3, generator=generator)
    return clouds


@dataclass(frozen=True, eq=False)  # by identity: settings have no hash
class Case:
    """A model class, and how a test gets a tiny model of it.

    Args:
        model_class: The class.
        build: Function that builds a model; takes config settings.
        inputs: Function of a batch size and a seed that returns arguments of `forward`, without labels.
        labels: The same for the arguments that a loss requires.
        answer: Name of the output to compare.
        last_layer: Path of the layer that `settle` scales; None if the last layer is a norm, or without norms for the
            last linear one.
        still_settings: Settings that switch off all randomness in training.
        owns_encoder: Whether the model has a frozen encoder.
        is_adapted: Whether PEFT methods are tested on it; there is no need to adapt a baseline without pretrained
            weights, and this package's own methods refuse to.
        variant: End of the name of a further case of the class.
    """

    model_class: type[PreTrainedModel]
    build: Callable[..., PreTrainedModel]
    inputs: Callable[[int, int], dict[str, Any]]
    labels: Callable[[int], dict[str, Any]] | None
    answer: str
    last_layer: str | None = None
    still_settings: dict[str, Any] | None = None
    owns_encoder: bool = False
    is_adapted: bool = True
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the class, for ids of tests and for the list of refusals."""
        return self.model_class.__name__ + self.variant

    def tiny(self, **settings: Any) -> PreTrainedModel:
        """A model in eval mode whose outputs are of order one."""
        model = self.build(**settings)
        settle(model, self)
        return model.eval()

    def still(self, **settings: Any) -> PreTrainedModel:
        """The same without dropout and drop path, so that training mode is deterministic."""
        return self.tiny(**((self.still_settings or {}) | settings))

    def batch(self, rows: int = 3, seed: int = 2) -> dict[str, Any]:
        """Inputs without labels."""
        return self.inputs(rows, seed)

    def labeled(self, rows: int = 3, seed: int = 2) -> dict[str, Any]:
        """Inputs with all arguments for a loss.

        Raises:
            ValueError: If the model returns no loss.
        """
        if self.labels is None:
            raise ValueError(f"{self.name} returns no loss; use `loss_of`")
        return self.inputs(rows, seed) | self.labels(rows)

    def answer_of(self, output: Any) -> torch.Tensor:
        """The output to compare."""
        return output[self.answer]

    def loss_of(self, model: PreTrainedModel, rows: int = 3, seed: int = 2) -> torch.Tensor:
        """A scalar to differentiate: the model's loss, or a fixed random projection of its output."""
        if self.labels is not None:
            return model(**self.labeled(rows, seed)).loss
        answer = self.answer_of(model(**self.batch(rows, seed))).float()
        weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(7))
        return (answer * weights.to(answer.device)).sum() / len(answer)


@torch.no_grad()
def settle(model: PreTrainedModel, case: Case) -> None:
    """Measure norms on varied inputs and scale the last layer, so that outputs are of order one."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        torch.manual_seed(0)
        model.train()
        model(**case.batch(16, 11))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    model.eval()
    if case.last_layer is None:
        if not norms and (linear := [layer for layer in model.modules() if type(layer) is nn.Linear]):
            spread = case.answer_of(model(**case.batch(12, 11))).std()
            for parameter in linear[-1].parameters():
                parameter.div_(spread)
        return
    layer = model.get_submodule(case.last_layer)

    def answer_of_layer() -> torch.Tensor:
        answer = case.answer_of(model(**case.batch(12, 11)))
        # Outputs may be several points, whose coordinates are the layer's channels.
        return answer.flatten(-2) if answer.shape[-2:].numel() == len(layer.weight) else answer

    answer = answer_of_layer()
    if layer.bias is not None:
        layer.bias.zero_()
        answer = answer_of_layer()
        answer = answer - answer.mean(dim=tuple(range(answer.ndim - 1)), keepdim=True)
    layer.weight.div_(answer.std())
    if layer.bias is not None:
        made = answer_of_layer()
        layer.bias.sub_(made.mean(dim=tuple(range(made.ndim - 1)))[: len(layer.bias)])


@torch.no_grad()
def spread_weights(model: nn.Module, seed: int = 3) -> None:
    """Draw new weights so that every layer keeps the scale of its input; norms and biases vary too."""
    generator = torch.Generator().manual_seed(seed)
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in norms and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * drawn)
        elif parameter.ndim < 2:
            parameter.copy_(0.1 * drawn)
        else:
            parameter.copy_(drawn * parameter.shape[-1] ** -0.5)


def relative_difference(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, in standard deviations of the expected values.

    Raises:
        AssertionError: If shapes differ, or the expected values hardly vary, so that tolerances would be meaningless.
    """
    assert made.shape == expected.shape, f"{tuple(made.shape)}, expected {tuple(expected.shape)}"
    expected = expected.detach().double()
    spread = expected.std() if expected.numel() > 1 else expected.abs()
    assert spread > 1e-3, f"values hardly vary: standard deviation {float(spread):.1e}"
    return float((made.detach().double() - expected).abs().max() / spread)
