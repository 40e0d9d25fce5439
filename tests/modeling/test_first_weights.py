"""First weights of encoders that are aligned with texts, and the scale at which cosines begin."""

import pytest
import torch

from hf_any3d.modeling.openshape import OpenShapeForZeroShotPointCloudClassification
from hf_any3d.modeling.patchalign3d import PatchAlign3DForZeroShotPointCloudSegmentation
from hf_any3d.modeling.uni3d import Uni3DForZeroShotPointCloudClassification
from tests.tiny_aligned import OWN, SMALL

ALIGNED = (
    OpenShapeForZeroShotPointCloudClassification,
    Uni3DForZeroShotPointCloudClassification,
    PatchAlign3DForZeroShotPointCloudSegmentation,
)


def build(kind, **settings):
    torch.manual_seed(0)
    config = kind.config_class
    return kind(config(**SMALL, **OWN[config.model_type], **settings))


@pytest.mark.parametrize("kind", ALIGNED)
def test_layers_and_learned_vectors_are_drawn_in_the_range_of_the_config(kind):
    narrow, wide = (dict(build(kind, initializer_range=value).named_parameters()) for value in (0.01, 0.03))
    vectors = {name for name in narrow if name.split(".")[-1] in ("token", "position", "class_token")}
    assert vectors
    if kind is PatchAlign3DForZeroShotPointCloudSegmentation:
        # The released program draws its class token otherwise.
        token, position = (narrow.pop(f"patchalign3d.class_token.{name}") for name in ("token", "position"))
        assert not token.any() and 0.5 < position.std() < 1.5
    for name, weight in narrow.items():
        if name in vectors or weight.std() > 0 and "conv" not in name:
            torch.testing.assert_close(wide[name], 3 * weight, rtol=1e-3, atol=1e-6, msg=name)
            assert weight.any() and (weight.numel() < 200 or 0.009 < weight.std() < 0.011), name
