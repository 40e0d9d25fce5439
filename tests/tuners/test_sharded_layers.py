"""Guided adapters in layers that FSDP2 shards separately, with attention shared by all layers."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.layers.direct_weights import gathered
from tests.common.models import case_of, relative_difference

CASE = case_of(Any2PointForPointCloudClassification)


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def adapted():
    model = CASE.still()
    torch.manual_seed(1)
    return get_peft_model(model, GuidedAdapterConfig(init_weights=False, bottleneck_dropout=0.0)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("reshard", [True, False])
def test_layers_with_shared_attention_can_be_sharded_separately(mesh, reshard):
    plain, sharded = adapted(), adapted()
    for layer in sharded.get_base_model().any2point.layer_stack.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh)
    outputs = [model(**CASE.labeled()) for model in (plain, sharded)]
    for output in outputs:
        output.loss.backward()
    assert relative_difference(outputs[1].logits, outputs[0].logits) < 1e-4
    gradients = {name: p.grad.full_tensor() for name, p in sharded.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    shared = [name for name in expected if "guided_adapter_attention" in name]
    assert gradients.keys() == expected.keys() and len(shared) == 6
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert all(expected[name].abs().max() > 1e-5 for name in shared if not name.endswith("norm_bias"))


def test_gradients_of_gathered_weights_are_means_over_processes():
    weight = torch.nn.Parameter(torch.ones(3))
    placements = []

    def full_tensor(grad_placements):
        placements.extend(grad_placements)
        return weight * 1

    shard = SimpleNamespace(device_mesh=SimpleNamespace(ndim=1, size=lambda: 4), full_tensor=full_tensor)
    gathered(shard).sum().backward()
    assert placements == [Partial()] and torch.equal(weight.grad, torch.full((3,), 0.25))
