"""What training changes without gradients, such as running statistics: below adapters it stands still, or is stored.

An adapter that is trained for some steps answers as before when it is opened on a fresh base. Whether norms move
depends on the modules below an adapter rather than on its method: each class is tried with one method by turns.
"""

import json
import warnings
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
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.pointnet import PointNetForPointCloudClassification
from hf_any3d.modeling.pretrained_parts.frozen_statistics import changes_itself, warn_of_moved_statistics
from hf_any3d.modeling.pretrained_parts.tensors import own_state
from tests.common.models import Case, case_of
from tests.common.test_tuners import fits
from tests.common.tuners import ALL, OWN, answer_of, assert_same, base_of, config_of, name_of, trained
from tests.errors import raises
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
# Plain models of transformers, whose `add_adapter` asks for a PEFT that is not released.
OTHERS = ("ImageBindAudioModel", "NormedPhiModel", "NormedPhiForCausalLM")


def combined() -> Iterator[tuple[Case, str, str]]:
    """Yield the classes, each with one method and door by turns, or with all methods that can adapt it."""
    for number, case in enumerate(ALL):
        own = [method for method in OWN if case.is_adapted and fits(case, method)]
        both = [(method, DOORS[0]) for method in (*STOCK, *own)]
        if case.name not in OTHERS:
            # PEFT refuses to inject VeRA, whose layers share weights.
            both += [(method, DOORS[1]) for method in (*STOCK, *own) if method != "VERA"]
        for pair in both if ALL_PAIRS else [both[5 * number % len(both)]]:
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


@pytest.mark.slow
def test_adapters_of_earlier_versions_say_what_they_lack(tmp_path):
    case = case_of(PointNetForPointCloudClassification)
    model = added(case, "LORA", DOORS[0])
    with pytest.warns(UserWarning, match="has no public name"):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftModel.from_pretrained(base_of(case), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["auto_mapping"]["norm_statistics"]
    file.write_text(json.dumps(config))
    lacks = r"lacks the statistics of 4 norms, such as pointnet\.layers\.0\.norm, .* this PointNetForPointCloud"
    with pytest.warns(UserWarning, match=lacks):
        PeftModel.from_pretrained(base_of(case), tmp_path)
    with pytest.warns(UserWarning, match=lacks):
        base_of(case).load_adapter(tmp_path)
    # Those of a point transformer stood still before, and its head is stored.
    earlier = case_of(ActForPointCloudClassification)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_moved_statistics(base_of(earlier), "adapter", ["classifier"])
    with pytest.warns(UserWarning, match=r"1 norms, such as classifier\.norms\.0"):
        warn_of_moved_statistics(base_of(earlier), "adapter", [])


@pytest.mark.slow
@pytest.mark.usefixtures("directories_are_names")
def test_statistics_that_a_file_lacks_are_named(tmp_path):
    case = case_of(ActForPointCloudClassification)
    trained(case, "LORA").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: each for key, each in load_file(file).items() if "running" not in key}, file)
    with raises(ValueError, naming="running_mean"):
        PeftModel.from_pretrained(base_of(case), tmp_path)
    with raises(ValueError, naming="running_mean"):
        base_of(case).load_adapter(tmp_path)
    case = case_of(PointNetForPointCloudClassification)
    added(case, "LN_TUNING", DOORS[0]).save_pretrained(tmp_path)
    save_file({key: each for key, each in load_file(file).items() if "running" not in key}, file)
    with pytest.warns(UserWarning, match=r"lacks .*running_mean.* and PointNetForPointCloudClassification has others"):
        PeftModel.from_pretrained(base_of(case), tmp_path)


@pytest.mark.slow
def test_below_learned_prompts_nothing_moves():
    case = next(case for case in ALL if case.name == "MiniGPT3DForConditionalGeneration")
    base = base_of(case)
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    norms = [module for module in base.modules() if changes_itself(module)]
    # As in a stage of training that trains the point encoder.
    base.base_model.point_encoder.requires_grad_(True)
    base.train()
    assert any(norm.training for norm in norms)
    model.train()
    assert not any(norm.training for norm in norms)
