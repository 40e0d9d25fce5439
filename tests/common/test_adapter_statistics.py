"""What training changes without gradients, such as running statistics: below adapters it stands still, or is stored.

An adapter that is trained for some steps answers as before when it is opened on a fresh base. Whether norms move
depends on the modules below an adapter rather than on its method: each class is tried with one method by turns.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.pretrained_parts.tensors import own_state
from tests.common.models import Case
from tests.common.test_tuners import fits
from tests.common.tuners import ALL, OWN, answer_of, assert_same, base_of, config_of, name_of
from tests.turns import ALL_PAIRS


def _norms(model: PreTrainedModel) -> list[str]:
    """Return the names of all norms with weights, those of batches among them."""
    norms = [
        (name, module) for name, module in model.named_modules() if type(module).__name__.endswith(("Norm", "1d"))
    ]
    return [name for name, module in norms if getattr(module, "weight", None) is not None and module.weight.ndim == 1]


STOCK: dict[str, Callable[[PreTrainedModel], PeftConfig]] = {
    "LORA": lambda model: LoraConfig(r=2, target_modules="all-linear"),
    "IA3": lambda model: IA3Config(target_modules="all-linear", feedforward_modules=[]),
    "LOHA": lambda model: LoHaConfig(r=2, target_modules="all-linear"),
    "LOKR": lambda model: LoKrConfig(r=2, target_modules="all-linear"),
    "VERA": lambda model: VeraConfig(r=2, target_modules="all-linear"),
    "OFT": lambda model: OFTConfig(oft_block_size=4, target_modules="all-linear"),
    "LN_TUNING": lambda model: LNTuningConfig(target_modules=_norms(model)),
}
DOORS = ("get_peft_model", "add_adapter")


def combined() -> Iterator[tuple[Case, str, str]]:
    """Yield the classes, each with one method and door by turns, or with all methods that can adapt it."""
    for number, case in enumerate(ALL):
        own = [method for method in OWN if case.is_adapted and fits(case, method)]
        # PEFT refuses to inject VeRA, whose layers share weights.
        both = [(method, door) for method in (*STOCK, *own) for door in DOORS if (method, door) != ("VERA", DOORS[1])]
        for pair in both if ALL_PAIRS else [both[3 * number % len(both)]]:
            yield case, *pair


COMBINED = list(combined())


def added(case: Case, method: str, door: str) -> nn.Module:
    """Return a model in training mode with an adapter beside which nothing is trained: heads are frozen, too."""
    base = base_of(case).train()
    config = STOCK[method](base) if method in STOCK else config_of(method, base, modules_to_save=[])
    if door == "get_peft_model":
        return get_peft_model(base, config)
    base.add_adapter(config)
    return base


def train(case: Case, model: nn.Module, steps: int) -> None:
    """Train for some steps in the mode that the model is in."""
    for seed in range(steps):
        case.loss_of(model, seed=seed).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign() * 0.002)
        model.zero_grad()


@pytest.mark.slow
@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "method", "door"), COMBINED, ids=name_of)
def test_adapters_answer_as_trained_on_a_fresh_base(case, method, door, tmp_path):
    model = added(case, method, door)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = {name: tensor.clone() for name, tensor in own_state(base).items()}
    train(case, model, 1)
    model.train()
    if base.supports_gradient_checkpointing:
        base.gradient_checkpointing_enable()
    train(case, model, 4 if ALL_PAIRS else 1)
    assert [name for name, tensor in own_state(base).items() if not torch.equal(tensor, before[name])] == []
    expected = answer_of(case, model)
    model.save_pretrained(tmp_path)
    opened: Any = base_of(case)
    if door == "get_peft_model":
        opened = PeftModel.from_pretrained(opened, tmp_path)
    else:
        opened.load_adapter(tmp_path)
    assert_same(answer_of(case, opened), expected)
