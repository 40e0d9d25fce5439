"""Compiled layers and captured steps give the losses and gradients of plain ones."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_any3d.modeling.act import ActAutoencoder, ActForPointCloudClassification
from hf_any3d.modeling.any2point import PointIndexer
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.faster_steps import CapturedSteps, compile_layers
from hf_any3d.tuners.targets import encoder_linear_pattern, trainable_module_names
from tests.common.models import case_of
from tests.common.test_accelerators import Watch, WatchConstants
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import adapted_model, clouds, tiny_model

QUIET = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
ONE_STEP = QUIET | {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "per_device_train_batch_size": 3}


def with_lora(model):
    targets = encoder_linear_pattern(model)
    return get_peft_model(model, LoraConfig(target_modules=targets, modules_to_save=trainable_module_names(model)))


MODELS = {
    "guided adapter": lambda: adapted_model("bert", {"gate": 0.2}, head_dropout=0.0),
    "attention over the batch": lambda: adapted_model(
        "clip_text_model", released={"attention_axis": "batch"}, head_dropout=0.0
    ),
    "LoRA": lambda: with_lora(tiny_model("bert", head_dropout=0.0)),
    "ACT": lambda: tiny_act(ActForPointCloudClassification, head_dropout=0.0, drop_path_rate=0.0),
}


def batch(rows, seed=2):
    return {"points": clouds(rows, seed=seed), "labels": torch.arange(rows) % 3}


def step(model, inputs):
    """Return loss, gradients and buffers of a training step."""
    model.train().zero_grad()
    loss = model(**inputs)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(model.named_buffers())


def test_compiled_models_refuse_an_index_of_other_points():
    model = MODELS["guided adapter"]().train()
    core = model.get_base_model()
    compile_layers(core, backend="eager")
    with raises(ValueError, naming="the centers are elsewhere in points"):
        model(**batch(3), point_index=PointIndexer(core.config)(clouds(3, seed=5)))


class Recorder:
    """Stands for `make_graphed_callables`: returns the module, and keeps what it was called with."""

    def __init__(self):
        self.captured, self.replayed = [], []

    def __call__(self, module, sample, allow_unused_input):
        assert not module._forward_hooks and not module._forward_pre_hooks and allow_unused_input
        assert all(isinstance(one, torch.Tensor) for one in sample)
        self.captured.append(len(sample[0]))
        module(*sample)  # warms up, and counts the batch in the statistics of norms

        def replay(*tensors):
            self.replayed.append(len(tensors[0]))
            return module(*tensors)

        return replay


@pytest.mark.parametrize("name", MODELS)
def test_batches_of_one_size_are_captured_and_others_are_not(name):
    plain = MODELS[name]().train()
    model = copy.deepcopy(plain)
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    recorder = Recorder()
    steps = CapturedSteps(model, core, recorder)
    sizes = [3, 3, 2, 3]
    for number, rows in enumerate(sizes):
        inputs: dict[str, Any] = batch(rows, seed=number)
        if name == "guided adapter":
            inputs["point_index"] = PointIndexer(core.config)(inputs["points"])
        loss, gradients, buffers = step(plain, inputs)
        model.zero_grad()
        found = steps.loss(inputs)
        found.backward()
        torch.testing.assert_close(found.detach(), loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(model.named_buffers()), buffers)
        assert {key for key, p in model.named_parameters() if p.grad is not None} == gradients.keys()
    assert recorder.captured == [3] and recorder.replayed == [3, 3, 3]


def test_what_a_graph_would_not_repeat_is_refused():
    model = MODELS["guided adapter"]()
    model.register_forward_pre_hook(lambda module, args: None)
    with raises(ValueError, naming="change from step to step"):
        CapturedSteps(model, model.get_base_model(), Recorder()).loss(batch(3))
    autoencoder = case_of(ActAutoencoder).build()
    with raises(ValueError, naming="ActAutoencoder is not captured"):
        CapturedSteps(autoencoder, autoencoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuda_graphs": True, "gradient_accumulation_steps": 2}, "--gradient_accumulation_steps 2"),
        ({"cuda_graphs": True, "rows_per_step": 48}, "--gradient_accumulation_steps 3"),
        ({"cuda_graphs": True, "gradient_checkpointing": True}, "--gradient_checkpointing True"),
        ({"cuda_graphs": True, "label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1"),
        ({"cuda_graphs": True, "head_epochs": 1}, "--head_epochs 1"),
        ({"cuda_graphs": True, "use_cpu": True}, "--cuda_graphs needs a CUDA GPU; the device is 'cpu'"),
        ({"compile_layers": True, "torch_compile": True}, "--torch_compile compiles the whole model already"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message, tmp_path):
    # Without a GPU that is the reason, whatever a recipe sets besides.
    if "cuda_graphs" in settings and not torch.cuda.is_available():
        message = "--cuda_graphs needs a CUDA GPU; the device is 'cpu'"
    with raises(ValueError, naming=message):
        PointTrainingArguments(str(tmp_path), **settings)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_an_adapter_reads_no_value(name):
    # On "meta" no value exists, so that a shape that depends on one is an error, too.
    model = MODELS[name]().to("meta").train()
    inputs = {key: value.to("meta") for key, value in batch(3).items()}
    watch = Watch()
    for _ in range(2):
        watch.found.clear()
        with watch, WatchConstants(watch):
            model(**inputs)["loss"].backward()
    assert not watch.found
