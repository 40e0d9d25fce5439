"""Our encoders against stored runs of the released program, tensor by tensor."""

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.conversions.uni3d.convert import LOGIT_SCALE, convert_uni3d_encoder
from hf_any3d.modeling.point_encoders.patches import group_patches
from hf_any3d.modeling.point_ops import knn
from hf_any3d.modeling.uni3d import Uni3DConfig, Uni3DModel
from tests.modeling.aligned_case import AlignedCase, stages_of
from tests.turns import some

# Name -> settings that no tensor shows.
CASES = {
    "uni3d_tiny": {"num_groups": 512, "group_size": 64},
    "uni3d_giant_reduced": {"num_groups": 96, "group_size": 32},
    "uni3d_base_reduced": {"num_groups": 96, "group_size": 32},
}
RELEASED = {"sampling_min_squared_norm": 1e-3}
TOLERANCE = 2e-5


# The full size has the layers of the reduced ones.
@pytest.fixture(scope="module", params=some(CASES, left_out=["uni3d_tiny"]))
def run(request):
    case = AlignedCase(request.param)
    state, sizes = convert_uni3d_encoder(case.original, case.manifest["trunk"]["heads"])
    model = Uni3DModel(Uni3DConfig(**sizes, **CASES[request.param], **RELEASED))
    model.load_state_dict({name: tensor for name, tensor in state.items() if name != LOGIT_SCALE}, strict=True)
    return case, model.eval(), state[LOGIT_SCALE]


def sorted_groups(points: torch.Tensor, centers: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the points of each group, ascending, and their rows, as the cases store them."""
    index = knn(centers, points, group_size).sort(dim=-1).values
    rows = torch.stack([cloud[own] for cloud, own in zip(points, index, strict=True)])
    rows[..., :3] -= centers.unsqueeze(2)
    return index, rows


@pytest.mark.slow
def test_every_stored_tensor_agrees(run):
    case, model, logit_scale = run
    found = {}
    parts = {"group_tokens": model.patch_encoder, "positions": model.position_embed}
    hooks = [
        part.register_forward_hook(lambda module, args, out, name=name: found.update({name: out}))
        for name, part in parts.items()
    ]
    hooks.append(
        model.patch_encoder.project.register_forward_pre_hook(lambda module, args: found.update(patches=args[0]))
    )
    blocks = [int(key.removeprefix("block_")) for key in case.expected if key.startswith("block_")]
    found |= stages_of(model, case.points, blocks)
    for hook in hooks:
        hook.remove()
    found["patch_features"] = found.pop("patches")
    del found["center_index"]
    found["group_index"], found["groups"] = sorted_groups(case.points, found["centers"], model.config.group_size)
    with torch.no_grad():
        found["similarity"] = model.get_point_features(case.points) @ normalize(case.text_embeds, dim=-1).T
    found["logits"] = logit_scale.exp() * found["similarity"]
    assert set(found) == set(case.expected)
    errors = {key: case.error(key, tensor) for key, tensor in found.items()}
    assert errors["centers"] == 0
    assert max(errors.values()) <= TOLERANCE, errors


def test_points_near_the_origin_are_skipped_as_released():
    case = AlignedCase("uni3d_group")
    points = case.points
    arguments = case.manifest["constructor_args"]
    patches = group_patches(points, arguments["num_group"], arguments["group_size"], 1e-3)
    index, rows = sorted_groups(points, patches.centers, arguments["group_size"])
    excluded = (points[..., :3].square().sum(dim=-1) <= 1e-3).sum(dim=1)
    found = {"centers": patches.centers, "group_index": index, "groups": rows, "excluded": excluded}
    assert set(found) == set(case.expected)
    assert {key: case.error(key, tensor) <= 1e-6 for key, tensor in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "giant"])
def test_published_sizes_have_exactly_our_tensors(size):
    case = AlignedCase(f"uni3d_manifest_{size}")
    (state, sizes), trunk = convert_uni3d_encoder(case.on_meta), case.manifest["trunk"]
    assert (sizes["num_attention_heads"], sizes["intermediate_size"]) == (trunk["heads"], trunk["mlp_hidden"])
    assert (sizes["hidden_size"], sizes["num_hidden_layers"]) == (trunk["width"], trunk["depth"])
    with torch.device("meta"):
        own = Uni3DModel(Uni3DConfig(**sizes)).state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {
        name: tensor.shape for name, tensor in state.items() if name != LOGIT_SCALE
    }
