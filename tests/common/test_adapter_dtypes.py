"""Stored adapters on bases in other dtypes, in every model: unknown weights are not different ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import PreTrainedModel, Trainer

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.pretrained_parts.mixin import opens_from_adapter
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.common.built import one_of_each
from tests.common.models import Case, case_of, first_of_configs
from tests.common.test_training_arguments import losses, trainer_of
from tests.common.test_tuners import PAIRS, SEQUENCE, fits, pair
from tests.common.tuners import (
    ADAPTED,
    METHODS,
    OWN,
    adapted,
    answer_of,
    assert_same,
    base_of,
    config_of,
    name_of,
    relative_difference,
    step,
)
from tests.errors import raises
from tests.turns import ALL_PAIRS, by_turns

FITTING = [case for case in ADAPTED if fits(case, "LORA")]
FIRST = first_of_configs(FITTING)
# A third of these for each property.
THIRDS = [FIRST if ALL_PAIRS else FIRST[turn::3] for turn in range(3)]
HALF = 0.25  # of the spread of the outputs, as of half precision itself
UNKNOWN = "cannot be compared"


@dataclass
class Stored:
    """A base and an adapter that was trained on it, both stored."""

    case: Case
    model: PeftModel
    base: str
    adapter: str

    @classmethod
    def of(cls, case: Case, method: str, folder: Path, base: str | None = None, **opening: Any) -> Stored:
        """Store a base unless it is one on the hub, train an adapter on it and store that too."""
        if base is None:
            base = str(folder / "base")
            base_of(case).save_pretrained(base)
        opened = case.model_class.from_pretrained(base, **opening)
        torch.manual_seed(1)
        model = get_peft_model(opened, config_of(method, opened))
        step(case, model)
        model.save_pretrained(folder / "adapter")
        return cls(case, model, base, str(folder / "adapter"))

    def open(self, **opening: Any) -> PreTrainedModel:
        """Open the base."""
        return self.case.model_class.from_pretrained(self.base, **opening)


BASES: dict[str, Callable[[Stored], PreTrainedModel | PeftModel]] = {
    "bfloat16": lambda stored: stored.open(dtype=torch.bfloat16),
    "float16": lambda stored: stored.open(dtype=torch.float16),
    "half": lambda stored: stored.open().half(),
    "double": lambda stored: stored.open().double(),
    "device_map": lambda stored: stored.open(device_map="auto"),
    "in memory": lambda stored: base_of(stored.case).to(torch.bfloat16),
    "the same model": lambda stored: stored.model,
    "the same model in half": lambda stored: stored.model.to(torch.bfloat16),
}
"""Ways to get the base that an adapter is loaded onto."""
# One method on a class of each config, in one of the ways: what the type of a base asks does not depend on the method.
# `test_tuners.py` loads all methods onto full bases.
SOME = PAIRS if ALL_PAIRS else by_turns([*SEQUENCE, *one_of_each(2, FITTING)], METHODS)
TRIED = by_turns([both for both in SOME if fits(*both)], list(BASES))


@pytest.mark.slow
@pytest.mark.parametrize(("both", "way"), TRIED, ids=[f"{pair(*both)}-{way}" for both, way in TRIED])
def test_an_adapter_loads_onto_its_base_in_any_dtype(both, way, tmp_path):
    case, method = both
    stored = Stored.of(case, method, tmp_path)
    expected = answer_of(case, stored.model)
    base = BASES[way](stored)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if isinstance(base, PeftModel):
            base.load_adapter(stored.adapter, "again")
            base.set_adapter("again")
            opened = base
        else:
            opened = PeftModel.from_pretrained(base, stored.adapter)
    # A model that was built in memory has no source to compare; all others have.
    compares = opens_from_adapter(case.model_class, opened.get_base_model().config)
    is_unknown = way == "in memory" and compares and not case.owns_encoder
    assert sum(UNKNOWN in str(warning.message) for warning in told) == is_unknown
    assert_near(answer_of(case, opened), expected, answer_of(case, stored.model.to(opened.dtype)))


def assert_near(found: torch.Tensor, full: torch.Tensor, half: torch.Tensor) -> None:
    """Check that an answer is near that in full precision, or that of a model that is rounded as a whole.

    Rounding alone moves some points to other cells, and an adapter's own weights are not rounded.
    """
    assert min(relative_difference(found, expected) for expected in (full, half)) < HALF


OFFLOADING = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, execution_device=torch.device("cpu")),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, execution_device=torch.device("cpu")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "place"), by_turns(THIRDS[2], list(OFFLOADING)), ids=name_of)
def test_adapters_are_loaded_before_weights_are_offloaded(case, place, tmp_path):
    stored = Stored.of(case, "LORA", tmp_path)
    with raises(ValueError, naming="adapter: the base model's weights"):
        PeftModel.from_pretrained(OFFLOADING[place](stored.open(), str(tmp_path / "bare")), stored.adapter)
    opened = OFFLOADING[place](PeftModel.from_pretrained(stored.open(), stored.adapter), str(tmp_path / "both"))
    assert_same(answer_of(case, opened), answer_of(case, stored.model))


@pytest.mark.slow
@pytest.mark.parametrize("case", THIRDS[1], ids=name_of)
def test_an_adapter_trained_in_half_precision_opens_on_half_and_full_bases(case, tmp_path):
    stored = Stored.of(case, "LORA", tmp_path, dtype=torch.bfloat16)
    low = PeftModel.from_pretrained(stored.open(dtype=torch.bfloat16), stored.adapter)
    assert_same(answer_of(case, low), answer_of(case, stored.model))
    full = PeftModel.from_pretrained(stored.open(), stored.adapter)
    assert_same(answer_of(case, full), answer_of(case, stored.model.float()), HALF)


@pytest.mark.slow
@pytest.mark.parametrize("case", THIRDS[0], ids=name_of)
def test_an_adapter_knows_its_base_on_the_hub_in_any_dtype(case, hub, tmp_path):
    name = f"me/dtypes-{case.name.lower()}"
    base_of(case).push_to_hub(name)
    commit = hub.commits(name)[-1]
    stored = Stored.of(case, "LORA", tmp_path, base=name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{UNKNOWN}")
        opened = PeftModel.from_pretrained(stored.open(dtype=torch.bfloat16), stored.adapter)
    full = answer_of(case, stored.model)
    assert_near(answer_of(case, opened), full, answer_of(case, stored.model.to(torch.bfloat16)))
    expected = answer_of(case, opened)
    changed = base_of(case)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    changed.push_to_hub(name)
    pinned = stored.open(dtype=torch.bfloat16, revision=commit)
    assert_same(answer_of(case, PeftModel.from_pretrained(pinned, stored.adapter)), expected)


DTYPES = (torch.float32, torch.bfloat16)
WITH_LOSS = [case for case in FITTING if case.labels is not None]
LEARNED = [(SEQUENCE[1], method) for method in OWN] + by_turns(WITH_LOSS, METHODS)
# Each method once, on different classes: what a Trainer stores and loads depends on the method. Some without
# HF_ANY3D_ALL_PAIRS=1: a layer inside, tokens, a branch beside the layers, biases, a layer of PEFT.
TRAINED = {
    both[1]: (both, dtype) for both, dtype in by_turns([both for both in LEARNED if fits(*both)], DTYPES)
}.values()
SOME_METHODS = ("GUIDED_ADAPTER", "IDPT", "SIDE_TUNING", "BITFIT", "LORA")
TRAINED = [(both, dtype) for both, dtype in TRAINED if ALL_PAIRS or both[1] in SOME_METHODS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("both", "dtype"), TRAINED, ids=[f"{pair(*both)}-{dtype}" for both, dtype in TRAINED])
def test_a_training_ends_with_its_best_adapter_and_resumes(both, dtype, tmp_path):
    case, method = both
    base_of(case).save_pretrained(tmp_path / "base")
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}

    def training(steps: int, **more: Any) -> Trainer:
        base = case.model_class.from_pretrained(tmp_path / "base", dtype=dtype)
        torch.manual_seed(1)
        model = get_peft_model(base, config_of(method, base))
        return trainer_of(case, tmp_path / "run", model=model, max_steps=steps, **(settings | more))

    trainer = training(2, load_best_model_at_end=True, greater_is_better=False)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses(trainer, "eval_loss")), rel=1e-3)
    resumed = training(3)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[:2] == losses(trainer) and len(losses(resumed)) == 3


@pytest.mark.slow
def test_other_weights_in_another_dtype_are_still_refused(tmp_path):
    case = case_of(ActForPointCloudClassification)
    stored = Stored.of(case, "LORA", tmp_path)
    model_class, base, adapter = case.model_class, stored.base, stored.adapter
    other = model_class.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        next(parameter for parameter in other.base_model.parameters()).add_(1)
    with pytest.warns(UserWarning, match="cannot be compared"):
        PeftModel.from_pretrained(other, adapter)
    full = model_class.from_pretrained(base)
    with torch.no_grad():
        next(parameter for parameter in full.base_model.parameters()).add_(1)
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        PeftModel.from_pretrained(full, adapter)
    elsewhere = model_class.from_pretrained(base)
    with torch.no_grad():
        next(parameter for parameter in elsewhere.base_model.parameters()).add_(1)
    elsewhere.save_pretrained(tmp_path / "other")
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "other", dtype=torch.bfloat16), adapter)


@torch.no_grad()
def _randomize(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(std=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", THIRDS[1], ids=name_of)
def test_adapters_are_swapped_in_place(case, tmp_path):
    first, second = (adapted(case, "LORA", seed, modules_to_save=[]) for seed in (1, 2))
    for model in (first, second):
        _randomize(model)
    second.save_pretrained(tmp_path)
    expected = answer_of(case, second)
    prepare_model_for_compiled_hotswap(first, target_rank=4)
    hotswap_adapter(first, str(tmp_path), adapter_name="default", torch_device="cpu")
    assert_same(answer_of(case, first), expected)
