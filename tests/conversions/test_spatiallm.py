"""Names and settings of released SpatialLM 1.1 models become ours, in the sizes that are released."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudObjectDetection, AutoModelForPointCloudTextToText
from hf_any3d.cli import app
from hf_any3d.conversions import convert_spatiallm
from hf_any3d.conversions.programs import plan
from hf_any3d.conversions.spatiallm.names import convert_spatiallm_state_dict, spatiallm_config
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from tests.conversions.spatiallm_originals import Released
from tests.errors import raises
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
    shapes = {name: shape for name, (shape, _) in manifest["state_dict"].items()}
    if config.text_config.tie_word_embeddings:
        # Its numbers would be compared with those of the embeddings, and here are none.
        shapes.pop("lm_head.weight", None)
    original = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = convert_spatiallm_state_dict(original, config)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ("qwen", "llama"))
def test_every_tensor_is_kept(name):
    case = SpatialLMCase(name)
    config = spatiallm_config(case.published_config)
    state = convert_spatiallm_state_dict(case.original, config)
    assert state.keys() == case.model.state_dict().keys()
    kept = {tensor.data_ptr() for tensor in state.values()}
    assert kept == {tensor.data_ptr() for tensor in case.original.values()}
    # A released file lacks the head that is tied to the embeddings.
    if name == "qwen":
        without = {key: tensor for key, tensor in case.original.items() if key != "lm_head.weight"}
        assert convert_spatiallm_state_dict(without, config).keys() == state.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"point_backbone": "scenescript"}, "point_backbone is 'scenescript'; expected one of sonata"),
        ({"model_type": "llava"}, "model_type is 'llava'; expected one of spatiallm_qwen, spatiallm_llama"),
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
    with raises(ValueError, naming="lm_head"):
        convert_spatiallm_state_dict(case.original | head, config)


CLOUD = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 3.0, 2.0, 1, 1, 1])


def written(folder: Path, cloud: torch.Tensor = CLOUD) -> list[int]:
    """The most likely tokens for a cloud."""
    model = AutoModelForPointCloudObjectDetection.from_pretrained(folder)
    inputs = AutoProcessor.from_pretrained(folder)(cloud)
    made = model.generate(**inputs, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    return made[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the processor's code_template")
@pytest.mark.parametrize("name", ("qwen", "llama"))
def test_a_released_directory_is_converted(name, tmp_path):
    released = Released(name)
    folder = released.write(tmp_path / "released")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "temperature": 0.7}))
    facts = convert_spatiallm(folder, tmp_path / "ours")
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "ours")
    assert type(model) is SpatialLMForConditionalGeneration and facts["parameters"] == model.num_parameters()
    assert model.generation_config.eos_token_id == [5, 6, released.tokenizer.eos_token_id]
    assert not model.generation_config.do_sample
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert processor.lower_edge and processor.stride == 16 and processor.num_bins == 1280
    assert processor.system == ("You are a helpful assistant." if name == "qwen" else None)
    assert written(tmp_path / "ours") != written(tmp_path / "ours", CLOUD.flip(0) * 0.5)


@pytest.mark.slow
def test_the_template_of_the_training_is_checked(tmp_path):
    folder = Released().write(tmp_path / "released")
    with raises(FileNotFoundError, naming="missing.txt"):
        convert_spatiallm(folder, tmp_path / "ours", code_template=tmp_path / "missing.txt")
    convert_spatiallm(folder, tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    with pytest.warns(UserWarning, match="code_template lacks the text that the model was trained with"):
        processor.instruction()
    processor.code_template = "class Wall: ..."
    with pytest.warns(UserWarning, match="code_template is not the text that the model was trained with"):
        processor.instruction()


@pytest.mark.slow
def test_directories_and_files_are_recognized(tmp_path):
    folder = Released().write(tmp_path / "released")
    for path in (folder, folder / "model.safetensors"):
        assert plan([path]) == ("convert_spatiallm", {"checkpoint": path})
    result = CliRunner().invoke(
        app, ["convert", str(folder), "--output", str(tmp_path / "ours"), "--dtype", "bfloat16"]
    )
    assert result.exit_code == 0 and "--license" in result.stdout
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    with raises(ValueError, naming="a model of this package, which needs no conversion"):
        plan([tmp_path / "ours"])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("tokens", "the tokenizer has <|point_start|> as .*; the config has point_start_token_id=3"),
        ("vocabulary", "tensors do not fit; of another shape: spatiallm.language_model"),
        ("scenescript", "config.json: point_backbone is 'scenescript'; expected one of sonata"),
        ("tokenizer", "released: no tokenizer; expected tokenizer.json"),
        ("missing", "tensors do not fit; missing: spatiallm.input_projection.bias"),
        ("dtype", "dtype is 'int8'; expected one of float32, bfloat16, float16"),
    ],
)
def test_damaged_directories_are_refused(harm, message, tmp_path):
    released = Released()
    folder, settings = released.write(tmp_path / "released"), released.config
    if harm in ("tokens", "vocabulary", "scenescript"):
        settings |= {
            "tokens": {"point_start_token_id": 3},
            "vocabulary": {"vocab_size": 999},
            "scenescript": {"point_backbone": "scenescript"},
        }[harm]
        (folder / "config.json").write_text(json.dumps(settings))
    elif harm == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif harm == "missing":
        state = {key: own for key, own in released.state.items() if key != "point_backbone.input_proj.bias"}
        save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        convert_spatiallm(folder, tmp_path / "ours", **({"dtype": "int8"} if harm == "dtype" else {}))
    assert not (tmp_path / "ours").exists()
