"""Losses of classification and segmentation models by `problem_type`, as in transformers."""

import pytest
import torch
from torch import nn

from tests.common.built import expected_of, forget_models as forget_models, fresh
from tests.common.models import CASES
from tests.common.refusals import check_refusal
from tests.errors import raises

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


CLASSIFIERS = [case for case in CASES if case.last_layer == "classifier.out"]
SEGMENTERS = [case for case in CASES if case.last_layer and case.last_layer.startswith("segmenter")]
LOSSES = {
    "single_label_classification": nn.functional.cross_entropy,
    "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
    "regression": nn.functional.mse_loss,
}
FITTING = {
    "single_label_classification": torch.tensor([0, 2, 1]),
    "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    "regression": torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.1, 3.0], [1.0, 1.5, -2.0]]),
}
over_classifiers = pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.name)


@pytest.mark.slow
@over_classifiers
@pytest.mark.parametrize("problem", LOSSES)
def test_the_loss_matches_the_problem_type(case, problem):
    model = fresh(case)
    model.config.problem_type = problem
    labels = FITTING[problem]
    output = model(**case.batch(), labels=labels)
    torch.testing.assert_close(output.loss, LOSSES[problem](expected_of(case), labels), rtol=1e-5, atol=0)
    if problem == "multi_label_classification":
        assert torch.equal(model(**case.batch(), labels=labels.long()).loss, output.loss)


@pytest.mark.parametrize("case", [*CLASSIFIERS, *SEGMENTERS], ids=lambda case: case.name)
def test_labels_are_integers_of_any_type_that_number_a_class(case):
    model, batch = fresh(case), case.labeled()
    labels = batch.pop("labels")
    loss = model(**batch, labels=labels).loss
    assert torch.equal(model(**batch, labels=labels.int()).loss, loss)
    for wrong in (model.config.num_labels, -1):
        labels = labels.clone()
        labels.view(-1)[1] = wrong
        with raises(ValueError, naming="num_labels"):
            model(**batch, labels=labels)


@pytest.mark.slow
@over_classifiers
def test_a_single_label_is_a_regression(case):
    model = case.still(num_labels=1).train()
    numbers = torch.tensor([0.5, -1.0, 2.0])
    torch.manual_seed(0)
    output = model(**case.batch(), labels=numbers)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - numbers).square().mean())
    assert model.config.problem_type == "regression"  # so that pipelines apply no function
    output.loss.backward()
    assert model.classifier.out.weight.grad.abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", SEGMENTERS, ids=lambda case: case.name)
def test_points_have_one_label_each(case):
    with check_refusal("problem_type", case.name):
        case.build(problem_type="multi_label_classification")
