"""Settings of our methods, each changed alone: an adapter with them trains, or is refused when it is made."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import get_peft_model

from hf_any3d import APPTConfig, IDPTConfig
from hf_any3d.modeling.act import ActForPointCloudClassification, ActForPreTraining
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudClassification
from hf_any3d.tuners.tuners_utils import EncoderTunerConfig
from tests.common.models import Case, case_of
from tests.common.test_tuners import fits
from tests.common.tuners import OWN, base_of, name_of, registered_here
from tests.errors import raises
from tests.turns import by_turns

PRETRAINING = case_of(ActForPreTraining)
CASES = [
    case_of(ActForPointCloudClassification),
    case_of(Any2PointForPointCloudClassification),
    PRETRAINING,
    case_of(PointTransformerV3ForPointCloudClassification),
]
# In place of a default of this type; numbers below, at and above the sizes of tiny models.
OTHERS: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (0, 5, 300),
    float: (-1.0, 3.0, float("nan")),
    str: ("no such choice",),
}


def changes(method: str) -> Iterator[dict[str, Any]]:
    """Yield settings of a method with one changed, each field of its own with several values."""
    config = registered_here()[method]
    common = {field.name for field in dataclasses.fields(EncoderTunerConfig)}
    for field in dataclasses.fields(config):
        if field.name in common:
            continue
        if field.name in config.choices:
            values: tuple[Any, ...] = (*config.choices[field.name], *OTHERS[str])
        elif field.name in ("layers_to_transform", "prompt_layers"):
            values = (0, -1, 99, [], [1, 1], "1")
        else:
            kind = type(field.default) if field.default is not None else float
            values = OTHERS.get(kind, ())
        for value in values:
            yield {field.name: value}


PAIRS = [(method, case) for method, case in by_turns(OWN, CASES) if fits(case, method)]
PAIRS += [(method, PRETRAINING) for method in ("APPT", "IDPT") if (method, PRETRAINING) not in PAIRS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "case"), PAIRS, ids=name_of)
def test_settings_that_do_not_fit_are_refused_when_the_adapter_is_made(method: str, case: Case):
    trained = 0
    for settings in changes(method):
        try:
            model = get_peft_model(base_of(case), OWN[method](**settings))
        except ValueError:
            continue
        try:
            loss = case.loss_of(model.train())
            loss.backward()
        except ValueError as error:
            assert "the number of points" in str(error), settings  # which no config knows
            continue
        assert torch.isfinite(loss), settings
        trained += 1
    assert trained or method == "BITFIT"


@pytest.mark.slow
def test_what_a_model_lacks_for_a_setting_is_named():
    with raises(ValueError, naming="order_table"):
        get_peft_model(base_of(PRETRAINING), APPTConfig(order_table=True))
    with pytest.raises(ValueError, match=r"neighbors=7 of a token, .* read 6 tokens .*; expected 1 to 6"):
        get_peft_model(base_of(PRETRAINING), IDPTConfig(neighbors=7))
    get_peft_model(base_of(PRETRAINING), IDPTConfig(neighbors=6))
    get_peft_model(base_of(PRETRAINING), IDPTConfig(neighbors=7, prompt_module="mlp"))
