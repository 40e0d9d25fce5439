"""Models work by themselves, and ask the package around them at one place."""

import pytest

from hf_any3d import PointNetConfig, PointNetForPointCloudClassification, PointNetModel
from hf_any3d.hub.weights import find_weights
from hf_any3d.modeling.hooks import Hooks, hooks, set_hooks
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder


@pytest.fixture
def use():
    """Set other hooks for a test."""
    before = hooks()
    yield set_hooks
    set_hooks(before)


def test_hooks_are_there_whatever_was_imported_before(use):
    use(None)
    assert hooks().find_weights is find_weights


def test_a_models_rule_for_new_weights_is_asked_about_those_alone(tmp_path):
    asked = []

    class Asked(PointNetModel):
        def _init_weights(self, module):
            asked.append(id(module))

    model = Asked(PointNetConfig(hidden_sizes=[8], head_widths=[8]))
    assert asked == [
        id(module) for module in model.modules() if next(module.parameters(recurse=False), None) is not None
    ]
    model.save_pretrained(tmp_path)
    asked.clear()
    Asked.from_pretrained(tmp_path)
    assert not asked, "of a saved model"


def test_without_hooks_models_are_saved_and_opened_and_nothing_is_added(use, tmp_path):
    use(Hooks())
    model = PointNetForPointCloudClassification(PointNetConfig(hidden_sizes=[8], head_widths=[8]))
    model.save_pretrained(tmp_path)
    PointNetForPointCloudClassification.from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(FileNotFoundError, match="me/encoder: no such directory, and revision main of it"):
        resolve_encoder("me/encoder")


def test_hooks_are_called_when_models_are_opened_and_saved(use, tmp_path):
    asked = []
    use(
        Hooks(
            check_name=lambda name, arguments: asked.append((name, arguments.get("revision"))),
            describe=lambda model, directory, repository: asked.append((type(model).__name__, directory, repository)),
        )
    )
    model = PointNetForPointCloudClassification(PointNetConfig(hidden_sizes=[8], head_widths=[8]))
    model.save_pretrained(tmp_path)
    assert asked == [("PointNetForPointCloudClassification", tmp_path, None)]
    assert PointNetConfig.from_pretrained(tmp_path).head_widths == [8]
    asked.pop()
    PointNetForPointCloudClassification.from_pretrained(tmp_path, revision="v2")
    assert asked[1] == (tmp_path, "v2")  # before anything else; then its config asks for itself
