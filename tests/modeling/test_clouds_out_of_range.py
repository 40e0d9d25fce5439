"""Every model rejects invalid clouds before they change a weight or a running statistic."""

from contextlib import nullcontext

import pytest
import torch

from hf_any3d.modeling.point_ops import LARGEST_COORDINATE
from tests.common.built import forget_models as forget_models, fresh
from tests.common.models import CASES
from tests.common.refusals import check_refusal
from tests.errors import raises
from tests.turns import ALL_PAIRS, by_turns

# The clouds are checked below the heads: of the classes of a config the last one is tried.
POINT_CASES = [case for case in CASES if "points" in case.batch(1)]
if not ALL_PAIRS:
    POINT_CASES = list({case.model_class.config_class: case for case in POINT_CASES}.values())
every_model = pytest.mark.parametrize("case", POINT_CASES, ids=lambda case: case.name)
LABELED = [case for case in POINT_CASES if case.name.endswith(("Classification", "Segmentation"))]


def with_number(case, number, channel):
    inputs = case.batch(3)
    inputs["points"][1, 5, channel] = number
    return inputs


@pytest.mark.slow
@every_model
def test_clouds_out_of_range_are_refused_and_change_nothing(case):
    model = fresh(case).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = (
        (float("nan"), "points: found NaN or infinite coordinates in cloud 1; expected finite numbers"),
        (float("inf"), "points: found NaN or infinite coordinates in cloud 1"),
        (1e30, r"points: found 1e\+30 in cloud 1; expected numbers of at most 1e\+12 in size"),
        (-1e30, r"points: found 1e\+30 in cloud 1"),
    )
    turn = POINT_CASES.index(case)
    for number, message in numbers if ALL_PAIRS else (numbers[turn % 2], numbers[2 + turn // 2 % 2]):
        for channel in (0, -1) if ALL_PAIRS else (-(turn % 2),):
            with pytest.raises(ValueError, match=message):
                model(**with_number(case, number, channel))
    # The norm of the categories runs before the points are checked.
    now = {name: tensor for name, tensor in model.state_dict().items() if "category_norm" not in name}
    assert [name for name, tensor in now.items() if not torch.equal(tensor, state[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    by_turns(POINT_CASES, [torch.float32, torch.float16]),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_largest_allowed_clouds_have_finite_outputs(case, dtype):
    model = fresh(case).to(dtype)
    inputs = case.batch(3)
    inputs["points"] = inputs["points"] * min(LARGEST_COORDINATE, torch.finfo(dtype).max ** 0.5) * 0.9
    for mode in (True, False):
        # Numbers of half precision are small enough for every model.
        refusal = check_refusal("largest coordinates", case.name) if dtype == torch.float32 else nullcontext()
        with refusal, torch.no_grad():
            assert case.answer_of(model.train(mode)(**inputs)).isfinite().all()
    assert all(buffer.isfinite().all() for buffer in model.buffers() if buffer.is_floating_point())


@pytest.mark.slow
@every_model
def test_float16_has_a_smaller_range(case):
    with raises(ValueError, naming="points: found 300 in cloud"):
        fresh(case).half()(**with_number(case, 300.0, 0))


@pytest.mark.slow
@every_model
def test_a_batch_without_clouds_is_refused_by_name(case):
    inputs = case.batch(3)
    inputs |= {name: inputs[name][:0] for name in ("points", "category") if name in inputs}
    with pytest.raises(ValueError, match=r"points has shape \(0, \d+, \d\); expected at least one cloud"):
        fresh(case)(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("case", LABELED, ids=lambda case: case.name)
def test_ignored_labels_give_zero_loss_and_gradients(case):
    if "ZeroShot" in case.name:
        pytest.skip("its labels are texts; none is ignored")
    model = fresh(case).train()
    inputs = case.labeled(3)
    loss = model(**inputs | {"labels": torch.full_like(inputs["labels"], -100)}).loss
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)
    assert model(**inputs).loss > 0.1
