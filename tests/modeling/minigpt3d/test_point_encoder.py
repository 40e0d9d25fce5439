import pytest
import torch

from hf_any3d.modeling.act import ActModel
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from tests.modeling.minigpt3d.reference_case import ReferenceCase
from tests.reference.fill import points


@pytest.fixture(scope="module")
def case() -> ReferenceCase:
    return ReferenceCase("encoder", prefix="point_encoder.")


@pytest.fixture(scope="module")
def released(case) -> ActModel:
    with torch.device("meta"):
        model = ActModel(MiniGPT3DConfig().point_config)
    model.load_state_dict(case.part("point_encoder."), assign=True)
    return model.eval()


@pytest.mark.slow
def test_tokens_are_the_released_ones(released, case):
    found = {}

    def keep(key, module):
        module.register_forward_hook(lambda _, inputs, output: found.update({key: (inputs[0], output)}))

    for key, module in (
        ("project", released.patch_encoder.project),
        ("patch_encoder", released.patch_encoder),
        ("pos_embed", released.position_embed),
        ("block0", released.blocks.layers[0]),
        ("block5", released.blocks.layers[5]),
    ):
        keep(key, module)
    with torch.no_grad():
        output = released(torch.from_numpy(points("minigpt3d_encoder", 2, 8192, 6)))
    assert case.difference("centers", output.centers) == 0
    neighborhoods = sorted_rows(found["patch_encoder"][0][:, ::32])
    torch.testing.assert_close(neighborhoods, case["neighborhood_sorted"], rtol=0, atol=1e-7)
    patches, tokens = found["project"]
    assert case.difference("patch_features", patches) < 1e-5
    assert case.difference("group_tokens", tokens) < 1e-5
    for key in ("pos_embed", "block0", "block5"):
        assert case.difference(key, found[key][1]) < 1e-4, key
    tokens = output.last_hidden_state
    assert case.difference("tokens", tokens) < 1e-4
    pooled = torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1)
    assert case.difference("global_feature", pooled) < 1e-4


def sorted_rows(neighborhoods: torch.Tensor) -> torch.Tensor:
    """Points of each group by x, then y, then z."""
    groups = [torch.tensor(sorted(group.tolist())) for group in neighborhoods.flatten(0, 1)]
    return torch.stack(groups).view_as(neighborhoods)
