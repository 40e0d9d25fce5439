"""Names and settings of released SpatialLM 1.1 models become ours and back, in the sizes that are released."""

import json
from pathlib import Path

import pytest
import torch

from hf_any3d.conversions.spatiallm.names import convert_spatiallm_state_dict, published_names, spatiallm_config
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from tests.modeling.spatiallm.reference_case import SpatialLMCase

FOLDER = Path(__file__).parents[1] / "reference"
PLACES = {"point_start_token_id": 10, "point_end_token_id": 11, "point_token_id": 12}


@pytest.mark.parametrize("size", ("qwen_0.5b", "llama_1b"))
def test_every_tensor_of_the_released_sizes_has_its_place(size):
    manifest = json.loads((FOLDER / f"spatiallm_manifest_{size}.json").read_text())
    # The token ids of the files are not known.
    config = spatiallm_config(manifest["config"] | PLACES)
    with torch.device("meta"):
        model = SpatialLMForConditionalGeneration(config)
    assert model.num_parameters() == manifest["parameters"]["all"]
    own = {name: [list(tensor.shape), "float32"] for name, tensor in model.state_dict().items()}
    expected = manifest["state_dict"]
    back = published_names(model.state_dict(), config)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == {
        name: list(shape) for name, (shape, _) in expected.items()
    }
    assert len(own) == len(expected)


@pytest.mark.parametrize("name", ("qwen", "llama"))
def test_there_and_back_keeps_every_tensor(name):
    case = SpatialLMCase(name)
    config = spatiallm_config(case.published_config)
    state = convert_spatiallm_state_dict(case.original, config)
    assert state.keys() == case.model.state_dict().keys()
    back = published_names(state, config)
    assert back.keys() == case.original.keys() | ({"lm_head.weight"} if name == "qwen" else set())
    assert all(torch.equal(tensor, back[key]) for key, tensor in case.original.items())
    # A released file lacks the head that is tied to the embeddings.
    if name == "qwen":
        without = {key: tensor for key, tensor in case.original.items() if key != "lm_head.weight"}
        assert convert_spatiallm_state_dict(without, config).keys() == state.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"point_backbone": "scenescript"}, "point_backbone='scenescript'; expected 'sonata'.*1.0, is not supported"),
        ({"model_type": "llava"}, "model_type='llava'; expected one of 'spatiallm_qwen', 'spatiallm_llama'"),
        ({"point_token_id": None}, "the config lacks point_token_id"),
        ({"projector": "conv"}, "projector='conv'"),
    ],
)
def test_other_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spatiallm_config(SpatialLMCase("qwen").published_config | changes)


def test_tensors_of_others_are_refused():
    case = SpatialLMCase("qwen")
    config = spatiallm_config(case.published_config)
    with pytest.raises(ValueError, match="belong to no known part: vision.weight"):
        convert_spatiallm_state_dict(case.original | {"vision.weight": torch.ones(2)}, config)
    head = {"lm_head.weight": torch.ones_like(case.original["model.embed_tokens.weight"])}
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        convert_spatiallm_state_dict(case.original | head, config)
    with pytest.raises(ValueError, match="other has no place in a released SpatialLM"):
        published_names({"other": torch.ones(2)}, config)
