"""Models around a frozen encoder: their layers, precision and modes, and what makes an encoder train."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hf_any3d import Any2PointForPointCloudClassification
from hf_any3d.modeling.any2point import Any2PointModel
from hf_any3d.modeling.encoders import LayerStack, encoder_families, unfreeze
from hf_any3d.modeling.encoders.frozen_encoder import Stage, _encoder_arguments, frozen_encoder_of
from hf_any3d.modeling.encoders.loading import FROZEN
from hf_any3d.modeling.layers.forward_contract import AttentionRecorder
from hf_any3d.modeling.library import ModelWarning
from hf_any3d.modeling.pretrained_parts import encoder_loading
from tests.tiny_encoders import HIDDEN, clouds, random_encoder, saved_encoder, tiny_config, tiny_model


def stack(stages: tuple[tuple[int, int], ...] = ()) -> LayerStack:
    layers = nn.ModuleList(nn.Identity() for _ in range(6))
    return LayerStack(layers, "blocks", "mlp", 32, views=2, pretrained=("blocks",), stages=stages)


def test_layers_know_their_stage():
    staged, plain = stack(((1, 8), (3, 16), (2, 32))), stack()
    assert [staged.stage_of(layer) for layer in staged.layers] == [
        Stage(0, 8, True, True),
        Stage(1, 16, True, False),
        Stage(1, 16, False, False),
        Stage(1, 16, False, True),
        Stage(2, 32, True, False),
        Stage(2, 32, False, True),
    ]
    assert [plain.stage_of(layer) for layer in plain.layers] == [
        Stage(0, 32, number == 0, number == 5) for number in range(6)
    ]
    with pytest.raises(ValueError) as error:
        plain.stage_of(nn.Identity())
    assert str(error.value) == "Identity: none of the layers blocks.0 …; expected complete layers"


def test_stacks_have_tokens_that_attend_to_each_other_in_one_stage_unless_said():
    plain = stack()
    assert (plain.attention_axis, plain.stages, plain.is_open, plain.trained, plain.final_norm) == (
        "tokens",
        (),
        False,
        (),
        None,
    )


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_the_stack_of_a_model_is_its_encoder(model_type):
    model = tiny_model(model_type, num_views=4)
    family, encoder = encoder_families()[model_type], model.any2point.encoder
    found = model.any2point.layer_stack
    assert found.layers is family.layers_of(encoder)
    assert (found.path, found.branch) == (f"encoder.{family.layers}", family.branch)
    assert (found.hidden_size, found.views, found.pretrained) == (HIDDEN, 4, ("encoder",))
    assert (found.attention_axis, found.stages) == ("tokens", ())
    assert model.layer_stack is None and frozen_encoder_of(model) is frozen_encoder_of(model.any2point) is encoder
    assert encoder._no_split_modules == {type(layer).__name__ for layer in found.layers}


def test_the_dtype_of_a_model_is_that_of_its_trained_weights():
    model = tiny_model(encoder_dtype="bfloat16")
    assert model.dtype == model.any2point.dtype == torch.float32
    assert model.any2point.encoder.dtype == torch.bfloat16
    assert model.to(torch.float64).dtype == torch.float64


@pytest.mark.parametrize("bits", ["8", "4"])
def test_peft_is_told_of_quantized_encoders(bits):
    model = tiny_model()
    name = f"is_loaded_in_{bits}bit"
    assert getattr(model, name) is False and getattr(model.any2point, name) is False
    setattr(model.any2point.encoder, name, True)
    assert getattr(model, name) is True and getattr(model.any2point, name) is True
    others = f"is_loaded_in_{'4' if bits == '8' else '8'}bit"
    assert getattr(model, others) is False


def test_own_modules_of_the_encoder_stay_in_evaluation_and_others_follow():
    model = tiny_model()
    encoder = model.any2point.encoder
    added = nn.Dropout()
    encoder.encoder.layer[0].added = added
    assert model.train() is model and model.training
    assert added.training and not any(module.training for module in encoder.modules() if module is not added)
    assert model.classifier.training
    assert model.eval() is model and not added.training and not model.training
    model.any2point._encoder_trains = True
    assert all(module.training for module in model.train().modules())
    assert not any(module.training for module in model.train(False).modules())


def test_a_random_encoder_is_told_once():
    model = Any2PointForPointCloudClassification(tiny_model().config)
    with pytest.warns(ModelWarning) as found:
        model.any2point.warn_if_encoder_is_random()
    assert [str(each.message) for each in found] == [
        f"the encoder has random weights, not those of {saved_encoder('bert')}: build the model with "
        "from_pretrained(…) or from_encoder_pretrained(config=…), not from the config alone"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.any2point.warn_if_encoder_is_random()
        tiny_model().any2point.warn_if_encoder_is_random()
        config = tiny_model().config
        config.encoder_name_or_path = None
        Any2PointForPointCloudClassification(config).any2point.warn_if_encoder_is_random()


def test_arguments_without_effect_are_refused():
    build = Any2PointForPointCloudClassification.from_encoder_pretrained
    message = (
        "Any2PointForPointCloudClassification.from_encoder_pretrained has no argument 'num_label'; expected its own "
        "or one of Any2PointConfig"
    )
    with pytest.raises(TypeError) as error:
        build(saved_encoder("bert"), num_label=3)
    assert str(error.value) == message
    with pytest.raises(ValueError, match="give either encoder_name_or_path or a config that names an encoder"):
        build()


def probe(model):
    return lambda: model(points=clouds(2)).logits


@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_trains_whatever_the_output_depends_on(training):
    model, modes = tiny_model().train(training), []
    encoder = model.any2point.encoder
    model.any2point.config.change_part("encoder", subfolder="encoder")

    def answer() -> torch.Tensor:
        modes.append(model.training)
        return probe(model)()

    with torch.no_grad():
        names = unfreeze(model, answer)
    assert modes == [False]  # layer drop would leave out layers by chance
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert names == trained and "encoder.layer.0.attention.self.query.weight" in names
    assert "embeddings.word_embeddings.weight" not in names and not any("pooler" in name for name in names)
    # Only type 0 is used of the embeddings of types, and positions are read as a table.
    assert "embeddings.position_embeddings.weight" in names
    assert model.training is training and encoder.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    for config in (model.config, model.any2point.config):
        part = config.part("encoder")
        assert part.stored and part.checksum is None and part.subfolder is None
        assert part.name_or_path == saved_encoder("bert")


def test_encoders_that_cannot_train_are_refused():
    model = tiny_model(encoder_dtype="bfloat16")
    message = (
        "encoder_dtype='bfloat16': half precision is for a frozen encoder; expected None or 'float32' to train it"
    )
    with pytest.raises(ValueError) as error:
        unfreeze(model, probe(model))
    assert str(error.value) == message
    full = tiny_model(encoder_dtype="float32")
    assert unfreeze(full, probe(full))
    lora = get_peft_model(tiny_model(), LoraConfig(target_modules=["query", "value"])).get_base_model()
    message = "the encoder holds adapters (Linear); merge or unload them first"
    with pytest.raises(ValueError) as error:
        unfreeze(lora, probe(lora))
    assert str(error.value) == message
    packed = tiny_model()
    query = packed.any2point.encoder.encoder.layer[1].attention.self.query
    query.weight = nn.Parameter(query.weight.to(torch.int8), requires_grad=False)
    message = "the encoder's encoder.layer.1.attention.self.query.weight is torch.int8; expected floating point"
    with pytest.raises(ValueError) as error:
        unfreeze(packed, probe(packed))
    assert str(error.value) == message


def test_modules_of_an_adopted_encoder_are_marked():
    model = tiny_model()
    assert all(FROZEN in vars(module) for module in model.any2point.encoder.modules())
    assert FROZEN not in vars(model.any2point) and FROZEN not in vars(model.classifier)
    names = {f"encoder.{name}" for name in model.any2point.encoder.state_dict()}
    assert model.any2point._keys_to_ignore_on_save == names


def test_predictions_that_depend_on_the_batch_are_told_once():
    model = tiny_model(attention_axis="batch").any2point
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().warn_about_batch_dependence()
        tiny_model().any2point.warn_about_batch_dependence()
    with pytest.warns(ModelWarning) as found:
        model.eval().warn_about_batch_dependence()
    flags = ", ".join(model.config.batch_dependent_flags)
    assert "attention_axis" in flags and [str(each.message) for each in found] == [
        f"this model's predictions depend on the other clouds of a batch ({flags})"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warn_about_batch_dependence()


def test_attention_over_the_batch_is_for_layers_without_places():
    with pytest.raises(ValueError) as error:
        tiny_model("llama", attention_axis="batch")
    assert str(error.value) == ("attention_axis='batch': 'llama' encoders attend by tokens' places; expected 'tokens'")


@pytest.mark.parametrize("by_config", [False, True])
def test_attention_and_device_of_a_new_model_are_chosen(by_config):
    build = Any2PointForPointCloudClassification.from_encoder_pretrained
    source = {"config": tiny_model().config} if by_config else {"encoder_name_or_path": saved_encoder("bert")}
    model = build(**source, attn_implementation="eager", device_map="cpu", dtype=torch.bfloat16)
    encoder = model.any2point.encoder
    assert encoder.config._attn_implementation == "eager" and encoder.dtype == torch.bfloat16
    assert model.dtype == torch.float32 and not model.training and model.config.encoder_config is encoder.config
    assert not model.any2point._encoder_is_random and not model.any2point._encoder_trains


def test_random_encoders_are_built_in_the_dtype_of_the_config():
    model = Any2PointForPointCloudClassification(tiny_model(encoder_dtype="bfloat16").config)
    encoder = model.any2point.encoder
    assert encoder.dtype == torch.bfloat16 and model.any2point._encoder_is_random
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.config._attn_implementation == "sdpa"


def test_weights_are_described_by_the_checksum_that_an_adapter_knows():
    model, config = tiny_model(), tiny_model().config
    checksum = config.part("encoder").checksum
    assert checksum and model.describe_weights(config) == checksum
    assert model.find_source() == config.part("encoder")
    model.any2point.config.change_part("encoder", stored=True)
    model.config.change_part("encoder", stored=True)
    assert model.describe_weights(config) == checksum  # stored, but the same
    changed = tiny_model()
    with torch.no_grad():
        changed.any2point.encoder.embeddings.LayerNorm.bias[3] += 1
    assert changed.describe_weights(config) == "weights that were changed"
    assert changed.find_source().stored
    config.change_part("encoder", stored=True, checksum=None)
    assert model.describe_weights(config) == model.checksum_in_memory(torch.float32)
    assert model.describe_weights(config) != changed.describe_weights(config)


def test_a_stored_encoder_has_the_dtype_of_its_config():
    config = tiny_model().config
    for dtype in (torch.bfloat16, torch.float32):
        config.encoder_config.dtype = dtype
        assert Any2PointForPointCloudClassification.stored_dtype(config) == dtype
    config.encoder_config.dtype = None
    assert Any2PointForPointCloudClassification.stored_dtype(config) == torch.float32


@pytest.mark.parametrize(("model_type", "settings"), [("bert", {"encoder_dtype": "bfloat16"}), ("llama", {})])
def test_a_saved_model_opens_with_the_frozen_encoder_that_it_names(model_type, settings, tmp_path):
    model = tiny_model(model_type, **settings)
    model.save_pretrained(tmp_path)
    model.any2point.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored and not [name for name in stored if ".encoder." in name]
    opened = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    base = Any2PointModel.from_pretrained(tmp_path / "base")
    own = model.any2point.encoder
    for owner in (opened.any2point, base):
        encoder = owner.encoder
        assert not owner._encoder_is_random and not owner._encoder_trains and not encoder.training
        assert all(FROZEN in vars(module) for module in encoder.modules())
        for one, other in zip(encoder.parameters(), own.parameters(), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype and not one.requires_grad
        for one, other in zip(encoder.buffers(), own.buffers(), strict=True):
            assert torch.equal(one, other)
        assert owner.changed_tensors("encoder") == model.any2point.changed_tensors("encoder")
    assert torch.equal(opened(points=clouds(2)).logits, model(points=clouds(2)).logits)


@pytest.mark.parametrize("lacks", ["all", "some"])
def test_a_stored_encoder_must_be_whole(lacks, tmp_path):
    model = tiny_model()
    unfreeze(model, probe(model))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    gone = ".encoder." if lacks == "all" else "layer.1.attention.self.query."
    save_file({name: tensor for name, tensor in load_file(file).items() if gone not in name}, file, {"format": "pt"})
    name = "encoder.layer.1.attention.self.query"
    what = "encoder weights" if lacks == "all" else f"encoder weights {name}.bias, {name}.weight"
    with pytest.raises(ValueError) as error:
        Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds no {what}, and its config does not say where to find them; give encoder_name_or_path=…"
    )


def test_an_encoder_without_a_choice_attends_as_the_model():
    config = tiny_model().config
    config._attn_implementation = "eager"
    encoder = random_encoder(tiny_config("bert"))
    encoder.config._attn_implementation = None
    assert Any2PointForPointCloudClassification(config, encoder).any2point.encoder is encoder
    assert encoder.config._attn_implementation == "eager"
    other = random_encoder(tiny_config("bert"))
    other.config._attn_implementation = "sdpa"
    model = Any2PointForPointCloudClassification(config, other)
    assert other.config._attn_implementation == "sdpa" and model.config.encoder_config is other.config


def test_attention_weights_of_all_layers_are_recorded():
    model = tiny_model(attn_implementation="eager").any2point
    recorder = model.record_attentions()
    assert isinstance(recorder, AttentionRecorder)
    assert [output.shape[-1] for output in model(clouds(2), output_attentions=True).attentions] == [9, 9]


def test_arguments_of_loading_reach_the_encoder():
    config = tiny_model().config
    found = _encoder_arguments(config, torch.bfloat16, "eager", "cpu")
    assert config.encoder_config._attn_implementation == "eager"
    assert found == {"dtype": torch.bfloat16, **encoder_loading("cpu", None)}
    assert encoder_loading("cpu", None) != encoder_loading(None, None)
    assert _encoder_arguments(config) == {"dtype": None, **encoder_loading(None, None)}
    assert config.encoder_config._attn_implementation == "eager"  # is kept
    assert _encoder_arguments(tiny_model(encoder_dtype="bfloat16").config)["dtype"] == torch.bfloat16
