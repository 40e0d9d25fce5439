"""Adapters of PEFT on a MiniGPT-3D with LoRA of its own, as every published one has it, at every door."""

import copy

import peft
import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.modeling.layers.low_rank import EARLIER_NAMES, LowRankLinear
from hf_any3d.modeling.minigpt3d.lora import add_low_rank, merge_low_rank
from hf_any3d.tuners.targets import with_default_modules
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import clouds, tiny_model
from tests.turns import by_turns

pytestmark = pytest.mark.filterwarnings("ignore:this adapter leaves out", "ignore:fan_in_fan_out")
# With LoRA of the model's own and without, in the Q-Former and in the language model.
NAMED = ["q_proj", "up_proj", "query"]
SETTINGS = {
    "ADALORA": {"total_step": 10, "init_r": 4},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": ["up_proj"]},
    "LN_TUNING": {"target_modules": None},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 2, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 10},
}
# Beside what PEFT itself refuses on this model, or for lack of several tasks.
METHODS = [
    str(kind.value)
    for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if config_class.__module__.startswith("peft.")
    and "target_modules" in config_class.__dataclass_fields__
    and kind not in ("POLY", "SHADOW", "TRAINABLE_TOKENS", "ADAPTION_PROMPT")
]
# They start with an effect.
MOVES = {"C3A", "FOURIERFT", "UNILORA", "VBLORA", "WAVEFT"}


def config_of(method: str, **changes) -> peft.PeftConfig:
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[method]]
    return config_class(**({"target_modules": NAMED} | SETTINGS.get(method, {}) | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3, generator=generator)
    folder = tmp_path_factory.mktemp("chat") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    model = AutoModelForPointCloudTextToText.from_pretrained(folder)
    return lambda: copy.deepcopy(model)


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=ids([2, *CLOUD, 5, 6]), points=torch.stack(clouds(40))).logits


def shaken(model: nn.Module, seed: int = 3) -> nn.Module:
    """Move everything that is trained, in the place of a training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def with_loaded(base, folder):
    base.load_adapter(folder)
    return base


DOORS = {
    "auto class": lambda folder, base: AutoModelForPointCloudTextToText.from_pretrained(folder),
    "AutoPeftModel": lambda folder, base: AutoPeftModel.from_pretrained(folder),
    "PeftModel": lambda folder, base: PeftModel.from_pretrained(base, folder),
    "load_adapter": lambda folder, base: with_loaded(base, folder),
}


@pytest.mark.parametrize(("method", "door"), by_turns(METHODS, list(DOORS), whole=("LORA",)))
def test_a_method_starts_as_the_model_trains_itself_alone_and_opens_equal(opened, tmp_path, method, door):
    bare, base = answer(opened()), opened()
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    torch.manual_seed(0)
    if method == "FROD":  # of layers of one size
        config = config_of(method, target_modules=["q_proj"])
    else:
        config = config_of(method)
    model = get_peft_model(base, config)
    if method not in MOVES:
        same(answer(model), bare)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(model.base_model.prefix in name for name in trained)
    expected = answer(shaken(model))
    assert (expected - bare).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    if door == "load_adapter" and model.base_model.uses_shared_state:
        door = "auto class"  # PEFT says that its own function alone can
    same(answer(DOORS[door](tmp_path, opened())), expected)
    if method not in ("BEFT", "LILY"):  # which no weight can hold
        merged = model.merge_and_unload()
        same(answer(merged), expected)
        assert merged.state_dict().keys() == kept.keys()
        assert all(
            torch.equal(merged.state_dict()[name], tensor) for name, tensor in kept.items() if "low_rank" in name
        )


def layers_of(model, config):
    """Names of adapted layers, as in a model without LoRA of its own, and the shapes of what adapts each."""
    adapted = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))  # PEFT fills in what a config leaves open
    shapes = {}
    for name in adapted.targeted_module_names:
        own = [
            tuple(each.shape)
            for each in adapted.base_model.model.get_submodule(name).parameters()
            if each.requires_grad
        ]
        shapes[name.removesuffix(".linear")] = own
    assert shapes
    return shapes


@pytest.mark.parametrize("text", ["llama", "gpt2", "normed_phi"])
def test_settings_mean_the_same_layers_as_in_a_model_without_lora(text):
    model, plain = tiny_model(text), tiny_model(text, text_lora=None, qformer_lora=None)
    some = ["dense", "query", "q_proj", "c_attn"]
    for config in (
        LoraConfig(target_modules=some, exclude_modules=["query"], rank_pattern={"dense|c_attn|q_proj": 3}),
        LoraConfig(target_modules=some, exclude_modules=r".*\.layers?\.0\..*", alpha_pattern={"query": 3}),
        LoraConfig(target_modules=some, layers_to_transform=[1], layers_pattern=["layers", "layer", "h"]),
        LoraConfig(target_modules=r"(?i).*\.(DENSE|query|q_proj|c_attn)"),
        LoraConfig(target_modules="all-linear"),
        LoraConfig(),
        LoraConfig(layers_to_transform=1),
        peft.IA3Config(),
        peft.IA3Config(target_modules=some, feedforward_modules=["c_attn", "q_proj", "dense"]),
        *([] if text == "gpt2" else [peft.LoHaConfig()]),  # which cannot adapt its layers
        peft.LNTuningConfig(),
    ):
        assert layers_of(model, config) == layers_of(plain, config)
        complete = with_default_modules(model, config)
        assert with_default_modules(model, complete) is complete


def test_adapters_are_added_switched_swapped_and_removed(opened, tmp_path):
    bare = answer(opened())
    model, config = opened(), LoraConfig(target_modules=NAMED)
    model.add_adapter(config)
    same(answer(model), bare)
    first = answer(shaken(model, 1))
    model.save_pretrained(tmp_path / "first")
    model.add_adapter(config, "second")
    model.set_adapter("second")
    same(answer(model), bare)
    model.set_adapter("default")
    same(answer(model), first)
    model.delete_adapter("second")
    same(answer(model), first)
    other = shaken(get_peft_model(opened(), config), 2)
    second = answer(other)
    other.save_pretrained(tmp_path / "second")
    both = PeftModel.from_pretrained(opened(), tmp_path / "first")
    both.load_adapter(tmp_path / "second", "second")
    for name, expected in (("default", first), ("second", second)):
        both.set_adapter(name)
        same(answer(both), expected)
    with both.disable_adapter():
        same(answer(both), bare)
    hotswap_adapter(other, tmp_path / "first", "default")
    same(answer(other), first)
    unloaded = both.unload()
    assert unloaded.state_dict().keys() == opened().state_dict().keys()
    same(answer(unloaded), bare)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_adapters_train_on_quantized_layers(folder, tmp_path, bits):
    def quantized(place=folder):
        settings = BitsAndBytesConfig(**{bits: True})
        return AutoModelForPointCloudTextToText.from_pretrained(place, quantization_config=settings)

    model = quantized()
    inside = {type(each.linear).__name__ for each in model.modules() if isinstance(each, LowRankLinear)}
    assert inside == {"Linear4bit" if bits == "load_in_4bit" else "Linear8bitLt"}
    bare = answer(model)
    model = get_peft_model(model, LoraConfig(target_modules=NAMED))
    same(answer(model), bare)
    expected = answer(shaken(model))
    model.save_pretrained(tmp_path)
    same(answer(PeftModel.from_pretrained(quantized(), tmp_path)), expected)
    same(answer(quantized(tmp_path)), expected)


def test_dropout_of_adapters_follows_the_model_and_stays_out_of_the_q_former(opened):
    config = LoraConfig(target_modules=NAMED, lora_dropout=0.5)
    model = get_peft_model(opened(), config)
    for mode in (True, False):
        model.train(mode)
        modes = {module.training for module in model.modules() if isinstance(module, nn.Dropout) and module.p == 0.5}
        assert modes == {mode}
    model.train()
    layers = [each for each in model.base_model.model.bridge.qformer.modules() if hasattr(each, "base_layer")]
    assert layers and not any(each.base_layer.training for each in layers)


def test_tensors_of_earlier_versions_load(folder, opened, tmp_path):
    """One that is stored whole, and a checkpoint; `stored_models` has one whose parts are elsewhere."""
    today, earlier = load_file(folder / "model.safetensors"), {}
    for name, tensor in today.items():
        for former, present in EARLIER_NAMES.items():
            name = name.replace(f".{present}", f".{former}")
        earlier[name] = tensor
    assert len(earlier.keys() - today.keys()) > 20
    save_file(earlier, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = answer(opened())
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path)
    assert torch.equal(answer(model), expected)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == today.keys()
    empty = tiny_model("llama")
    assert not any(empty.load_state_dict(earlier))
    assert torch.equal(answer(empty), expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "Dora"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ],
)
def test_lora_that_is_more_than_two_matrices_is_refused(settings, named):
    with raises(ValueError, naming=named):
        tiny_model("llama", text_lora={"r": 2} | settings)


class Layers(nn.Module):
    """A linear layer, and one of GPT-2, which has the transposed weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), Conv1D(4, 5)
        self.second.weight.data.normal_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"lora_bias": True}, {"use_rslora": True, "rank_pattern": {"first": 2}}])
@torch.no_grad()
def test_layers_compute_and_merge_as_those_of_peft(settings, dtype):
    settings = {"r": 3, "lora_alpha": 8, "target_modules": ["first", "second"], "init_lora_weights": False} | settings
    theirs = Layers().to(dtype)
    ours, inputs = copy.deepcopy(theirs), torch.randn(7, 6, dtype=dtype)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(LoraConfig(**settings), theirs)
    torch.manual_seed(0)
    add_low_rank(ours, settings)
    expected = theirs(inputs)
    assert torch.equal(ours(inputs), expected) and expected.dtype == dtype
    assert sum(each.numel() for each in ours.parameters() if each.requires_grad) == sum(
        each.numel() for each in theirs.parameters() if each.requires_grad
    )
    merge_low_rank(ours)
    for name in ("first", "second"):
        theirs.get_submodule(name).merge()
        for merged, other in zip(
            ours.get_submodule(name).parameters(), theirs.get_submodule(name).base_layer.parameters(), strict=True
        ):
            assert torch.equal(merged, other), name
