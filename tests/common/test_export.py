"""Programs of `torch.export` of every registered model class compute what the model does, also for other clouds."""

import pytest
import torch
from torch import nn

from tests.common.built import expected_of, forget_models as forget_models, fresh
from tests.common.models import CASES, Case, registered_classes, relative_difference
from tests.common.refusals import check_refusal, feature, refusal_of
from tests.turns import ALL_PAIRS

EXPORT = feature("torch.export", "programs of torch.export, of one shape of inputs")


def is_tried(case: Case) -> bool:
    """Whether a class is tried: the first head of each config, with the body in its program, and what is refused."""
    body, *heads = registered_classes(case.model_class.config_class)
    is_first = case.model_class is (heads or [body])[0]
    return ALL_PAIRS or is_first or refusal_of(EXPORT, case.name) is not None


class Answer(nn.Module):
    """The model with the output to compare alone."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.model = case, fresh(case)

    def forward(self, **inputs):
        return self.case.answer_of(self.model(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(filter(is_tried, CASES)), ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_exported_program_gives_the_same_outputs(case):
    model = Answer(case).eval()
    with check_refusal(EXPORT, case.name) as is_supported:
        program = torch.export.export(model, (), case.batch(), strict=False).module()
    if is_supported:
        assert relative_difference(program(**case.batch()), expected_of(case)) < 1e-4
        # Nothing that was computed from the clouds of the trace is part of the program.
        others = case.batch(seed=5)
        assert relative_difference(program(**others), model(**others)) < 1e-4
