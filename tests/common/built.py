"""Models of the cases that tests of a module share."""

import functools
import gc
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from tests.common.models import CASES, Case
from tests.copies import Copies
from tests.turns import ALL_PAIRS

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def one_of_each(turn: int, cases: Sequence[Case] = CASES) -> list[Case]:
    """Return one class of each config, for what layers decide rather than heads, or all with HF_ANY3D_ALL_PAIRS=1.

    Args:
        turn: Which of its classes; another one for each property, so that every class is tried with some.
        cases: Classes to choose from.
    """
    if ALL_PAIRS:
        return list(cases)
    kinds: dict[type, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.model_class.config_class, []).append(case)
    return [kind[turn % len(kind)] for kind in kinds.values()]


def over_one_of_each(turn: int, cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    """Parametrize over one class of each config."""
    return pytest.mark.parametrize("case", one_of_each(turn, cases), ids=lambda case: case.name)


@functools.cache
def built(name: str) -> tuple[PreTrainedModel, torch.Tensor]:
    """Return the case's model, in eval mode and without randomness, and its output for the case's batch."""
    case = next(case for case in CASES if case.name == name)
    model = case.still()
    return model, answer(case, model)


@functools.cache
def _copies(name: str) -> Copies[PreTrainedModel]:
    return Copies(built(name)[0])


def answer(case: Case, model: PreTrainedModel, rows: int = 3) -> torch.Tensor:
    """Return the output for the case's batch."""
    with torch.no_grad():
        return case.answer_of(model(**case.batch(rows)))


def fresh(case: Case) -> PreTrainedModel:
    """Return a copy of the case's model, in eval mode."""
    return _copies(case.name).another()


def expected_of(case: Case) -> torch.Tensor:
    """Return its expected output."""
    return built(case.name)[1]


def gradients_of(case: Case, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the gradients of a seeded training step of a model."""
    model.train()
    torch.manual_seed(0)
    case.loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@functools.cache
def plain_gradients(name: str) -> dict[str, torch.Tensor]:
    """Return those of the case's model."""
    case = next(case for case in CASES if case.name == name)
    return gradients_of(case, fresh(case))


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    """Free the models after each module that imports this fixture."""
    yield
    built.cache_clear()
    _copies.cache_clear()
    plain_gradients.cache_clear()
    torch.compiler.reset()
    gc.collect()
