"""Compiled layers give the losses and gradients of plain ones, in few regions."""

import copy
import logging
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.faster_steps import compile_layers
from hf_any3d.training.trainer import PointTrainer
from hf_any3d.tuners.targets import layer_stack
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds
from tests.training.test_faster_steps import MODELS, batch, step
from tests.turns import some

QUIET = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
ONE_STEP = QUIET | {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "per_device_train_batch_size": 3}
# Tokens, table of cells, folded weights, a layer, pooling, head with loss.
REGIONS = 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_one_compiled_region_serves_all_layers_and_batches_of_any_size():
    torch.compiler.reset()
    counters.clear()
    plain = MODELS["guided adapter"]()
    model = copy.deepcopy(plain)
    core = model.get_base_model()
    # This backend differentiates the graph, where "eager" has autograd do it.
    assert compile_layers(core, backend="aot_eager") == len(layer_stack(core).layers)
    for rows in (4, 3, 5):
        found, expected = (step(one, batch(rows)) for one in (model, plain))
        assert found[1].keys() == expected[1].keys()
        largest = max(gradient.abs().max() for gradient in expected[1].values())
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        for key, gradient in expected[1].items():
            assert (found[1][key] - gradient).abs().max() < 1e-4 * largest, key
        torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == REGIONS and not counters["graph_break"]
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        logits = [one.eval()(points=clouds()).logits for one in (model, plain)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_layers_of_different_rates_are_not_compiled_one_by_one():
    """A deep encoder stays below torch's limit, beyond which layers run uncompiled."""
    torch.compiler.reset()
    counters.clear()
    model = tiny_act(ActForPointCloudClassification, num_hidden_layers=12, drop_path_rate=0.1, head_dropout=0.0)
    # Only the last layers are trained.
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    for layer in layer_stack(model).layers[-3:]:
        layer.requires_grad_(True)
    assert compile_layers(model, backend="eager") == 12
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows in (4, 3):
            step(model, batch(rows))
    assert counters["stats"]["unique_graphs"] <= 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", some(["LoRA", "ACT"], left_out=["LoRA"]))
def test_the_trainer_compiles_layers_and_says_how_long_that_takes(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    rows = [{"points": cloud, "labels": number} for number, cloud in enumerate(clouds(3))]
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        arguments = PointTrainingArguments(str(tmp_path), compile_layers=compiled, **ONE_STEP)
        with caplog.at_level(logging.INFO):
            losses.append(PointTrainer(MODELS[name](), arguments, train_dataset=rows).train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert counters["stats"]["unique_graphs"] >= 1
    assert caplog.text.count("in which layers were compiled") == 1
