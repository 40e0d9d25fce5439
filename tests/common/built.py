"""Models of the cases that tests of a module share."""

import copy
import functools
import gc

import torch
from transformers import PreTrainedModel

from tests.common.models import CASES, Case


@functools.cache
def built(name: str) -> tuple[PreTrainedModel, torch.Tensor]:
    """Return the case's model, in eval mode and without randomness, and its output for the case's batch."""
    case = next(case for case in CASES if case.name == name)
    model = case.still()
    return model, answer(case, model)


def answer(case: Case, model: PreTrainedModel, rows: int = 3) -> torch.Tensor:
    """Return the output for the case's batch."""
    with torch.no_grad():
        return case.answer_of(model(**case.batch(rows)))


def fresh(case: Case) -> PreTrainedModel:
    """Return a copy of the case's model, in eval mode."""
    return copy.deepcopy(built(case.name)[0])


def expected_of(case: Case) -> torch.Tensor:
    """Return its expected output."""
    return built(case.name)[1]


def gradients_of(case: Case, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the gradients of a seeded training step of a model."""
    model.train()
    torch.manual_seed(0)
    case.loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def forget() -> None:
    """Free the models."""
    built.cache_clear()
    torch.compiler.reset()
    gc.collect()
