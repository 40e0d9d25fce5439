"""Our encoders against stored runs of the released program, tensor by tensor."""

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.conversions.openshape.convert import convert_openshape_encoder
from hf_any3d.modeling.openshape import OpenShapeConfig, OpenShapeModel
from hf_any3d.modeling.point_ops import ball_query
from tests.modeling.aligned_case import AlignedCase, stages_of
from tests.turns import some

CASES = ("openshape_vitb32", "openshape_vitg14")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=some(CASES, left_out=["openshape_vitg14"]))
def run(request):
    case = AlignedCase(request.param)
    state, sizes = convert_openshape_encoder(case.original)
    model = OpenShapeModel(OpenShapeConfig(**sizes))
    model.load_state_dict(state, strict=True)
    return case, model.eval()


@pytest.mark.slow
def test_every_stored_tensor_agrees(run):
    case, model = run
    config = model.config
    found = stages_of(model, case.points, [0, 5, 11])
    index, count = ball_query(
        found["centers"], case.points, config.group_radius, config.group_size, return_counts=True
    )
    found |= {"group_index": index, "ball_count": count, "groups": model.cut(case.points).neighborhoods}
    with torch.no_grad():
        found["similarity"] = model.get_point_features(case.points) @ normalize(case.text_embeds, dim=-1).T
    found["logits"] = case.logit_scale.exp() * found["similarity"]
    assert set(found) == set(case.expected)
    errors = {key: case.error(key, tensor) for key, tensor in found.items()}
    assert errors["centers"] == 0
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("size", ["vitb32", "vitl14", "vitg14"])
def test_published_sizes_have_exactly_our_tensors(size):
    case = AlignedCase(f"openshape_manifest_{size}")
    state, sizes = convert_openshape_encoder(case.on_meta)
    arguments = case.manifest["constructor_args"]
    assert (sizes["num_groups"], sizes["group_size"]) == (arguments["patches"], arguments["nsample"])
    assert (sizes["group_radius"], sizes["projection_dim"]) == (arguments["radius"], arguments["out_dim"])
    with torch.device("meta"):
        own = OpenShapeModel(OpenShapeConfig(**sizes)).state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in state.items()}
    assert sum(tensor.numel() for tensor in own.values() if tensor.is_floating_point()) == case.manifest["parameters"]
