"""Adapters with names of their own: the best weights, a resumed run and a saved directory are those of each name."""

import itertools

import pytest
import torch
import transformers
from peft import AutoPeftModel, PeftModel, get_peft_model
from transformers import AutoFeatureExtractor, Trainer

from hf_any3d import ActForPointCloudClassification, AutoModelForPointCloudClassification, PointCloudProcessor
from hf_any3d.training.trainer import PointTrainer
from tests.common.models import case_of
from tests.common.test_training_arguments import trainer_of
from tests.common.tuners import METHODS, answer_of, base_of, config_of
from tests.errors import raises
from tests.turns import ALL_PAIRS, some

CASE = case_of(ActForPointCloudClassification)
KINDS = (Trainer, PointTrainer)
# Layers, and shared matrices. In tests/common, all methods are trained and resumed under PEFT's own name
# (test_adapter_dtypes.py) and have two names (test_tuners.py).
SOME = METHODS if ALL_PAIRS else ("VERA",)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adapted(method, names):
    """Return a model with adapters of different weights, of which the last one is active."""
    base = base_of(CASE)
    torch.manual_seed(0)
    model = get_peft_model(base, config_of(method, base), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config_of(method, base_of(CASE)))
    for name in names:
        model.set_adapter(name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def trained(model, folder, kind, resume=None, **settings):
    """Train for three steps, of which the first is said to be the best."""
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    steps |= {"metric_for_best_model": "steps", "greater_is_better": False, "save_total_limit": None}

    def metrics(_):
        return {"steps": trainer.state.global_step}

    trainer = trainer_of(CASE, folder, kind, metrics, model, **steps | settings)
    trainer.processing_class = PointCloudProcessor(num_points=48)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("kind", "method", "names"),
    [
        *((kind, method, ("mine",)) for kind, method in zip(itertools.cycle(KINDS), SOME, strict=False)),
        *some(
            [
                (Trainer, "IDPT", ("default", "mine")),
                (Trainer, "BITFIT", ("mine", "default")),
                (PointTrainer, "BITFIT", ("first", "second")),
            ],
            left_out=[(Trainer, "BITFIT", ("mine", "default"))],
        ),
    ],
)
def test_the_best_weights_are_those_of_each_adapter_and_training_resumes(kind, method, names, tmp_path):
    model = adapted(method, names)
    trained(model, tmp_path, kind, load_best_model_at_end=True)
    assert model.active_adapters == [names[-1]]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in names:
        folder = tmp_path / "checkpoint-1" / ("" if name == "default" else name)
        model.set_adapter(name)
        opened = AutoModelForPointCloudClassification.from_pretrained(folder)
        torch.testing.assert_close(answer_of(CASE, model), answer_of(CASE, opened))
    resumed = adapted(method, names)
    trained(resumed, tmp_path, kind, resume=str(tmp_path / "checkpoint-2"))
    last = AutoModelForPointCloudClassification.from_pretrained(
        tmp_path / "checkpoint-3" / ("" if names[-1] == "default" else names[-1])
    )
    torch.testing.assert_close(answer_of(CASE, resumed), answer_of(CASE, last))


def test_a_saved_adapter_opens_from_the_folder_of_its_name(tmp_path):
    model = adapted("GUIDED_ADAPTER", ("mine",))
    trainer = trained(model, tmp_path / "run", Trainer)
    trainer.save_model(str(tmp_path))
    expected = answer_of(CASE, model)
    folder = str(tmp_path / "mine")
    for opened in (
        transformers.pipeline("point-cloud-classification", model=folder).model,
        transformers.pipeline(model=folder).model,
        AutoPeftModel.from_pretrained(folder),
        PeftModel.from_pretrained(base_of(CASE), folder, adapter_name="mine"),
    ):
        torch.testing.assert_close(answer_of(CASE, opened), expected)
    assert AutoFeatureExtractor.from_pretrained(folder).num_points == 48
    for door in (
        ActForPointCloudClassification.from_pretrained,
        AutoModelForPointCloudClassification.from_pretrained,
        AutoPeftModel.from_pretrained,
        lambda name: transformers.pipeline("point-cloud-classification", model=name),
        lambda name: transformers.pipeline(model=name),
    ):
        with raises(OSError, naming="folders with the adapters mine"):
            door(str(tmp_path))


def test_a_stored_adapter_that_is_not_opened_for_training_is_not_trained(tmp_path):
    adapted("GUIDED_ADAPTER", ("default",)).save_pretrained(tmp_path / "adapter")
    with raises(ValueError, naming="is_trainable=True"):
        trained(ActForPointCloudClassification.from_pretrained(tmp_path / "adapter"), tmp_path / "run", Trainer)


def test_a_second_peft_model_names_what_to_call_instead(tmp_path):
    model = adapted("LORA", ("default",))
    model.save_pretrained(tmp_path)
    for wrap in (
        lambda: get_peft_model(model, config_of("GUIDED_ADAPTER", base_of(CASE))),
        lambda: PeftModel.from_pretrained(model, str(tmp_path), adapter_name="other"),
    ):
        with raises(ValueError, naming="'default' already; expected model.load_adapter"):
            wrap()
    assert model.load_adapter(str(tmp_path), "other") and model.set_adapter("other") is None
