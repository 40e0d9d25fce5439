"""APPT on Point-PN's tokens and a vision transformer, against stored runs of the released program."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification, APPTConfig
from hf_any3d.modeling.any2point.point_tokenizer import ALPHA, BETA
from hf_any3d.tuners.appt import APPTLayer
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"
CASES = sorted(FOLDER.glob("appt_*.json"))
# Point-PN's divisors of the offsets in the programs for the two datasets
OFFSETS = {"scan": ("group_max", 1e-6), "mn40": ("batch_std", 1e-5)}
TOKENIZER = "base_model.model.any2point.point_tokenizer.modules_to_save.default."
LAYERS = "base_model.model.any2point.encoder.layers."
HEAD = {"0": "hidden.0", "1": "norms.0", "4": "hidden.1", "5": "norms.1", "8": "out"}
OURS = {
    "cls_token": "base_model.model.any2point.class_token.token",
    "pos_embed": LAYERS + "0.appt_positions.default",
    "conv_block.weight": LAYERS + "0.appt_relation.default.weight",
    "conv_block.bias": LAYERS + "0.appt_relation.default.bias",
}
IN_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def filled(name: str, shape: list[int], dtype: str) -> torch.Tensor:
    """Return a weight by the rules of the cases."""
    values = torch.from_numpy(fill(name, shape, dtype))
    if name in ("cls_token", "cls_pos", "pos_embed"):
        return values * 10
    return values * 20 / math.sqrt(math.prod(shape[1:])) if len(shape) >= 2 else values


def ours_of(name: str) -> str:
    """Return our name of a tensor of the released program."""
    if name in OURS:
        return OURS[name]
    part, _, rest = name.partition(".")
    if part == "enc_norm":
        return f"base_model.model.any2point.output_norm.modules_to_save.default.{rest}"
    if part == "head":
        number, leaf = rest.split(".")
        return f"base_model.model.classifier.modules_to_save.default.{HEAD[number]}.{leaf}"
    if part == "blocks":
        number, _, rest = rest.partition(".")
        where, _, leaf = rest.rpartition(".")
        return f"{LAYERS}{number}.base_layer.{IN_LAYER[where]}.{leaf}"
    rest = rest.removeprefix("EncP.")
    if rest.startswith("raw_point_embed.net."):
        _, _, number, leaf = rest.split(".")
        return TOKENIZER + {"0": "embed", "1": "embed_norm"}[number] + "." + leaf
    _, stage, which, *deeper, leaf = rest.split(".")
    if which == "linear1":
        own = {"0": "lift", "1": "lift_norm"}[deeper[1]]
    else:
        block, net, number = deeper
        own = f"blocks.{block}." + {"net1": "reduce", "net2": "expand"}[net] + {"0": "", "1": "_norm"}[number]
    return f"{TOKENIZER}stages.{stage}.{own}.{leaf}"


class Case:
    """A stored run, and our model with the same weights."""

    def __init__(self, path: Path):
        self.manifest = json.loads(path.read_text())
        self.expected = load_file(path.with_suffix(".safetensors"))
        self.original = {
            name: filled(name, spec["shape"], spec["dtype"]) for name, spec in self.manifest["state_dict"].items()
        }
        self.model = self.build()

    @property
    def points(self) -> torch.Tensor:
        spec = self.manifest["input"]
        return torch.from_numpy(points(spec["name"], spec["batch"], spec["count"], spec["channels"]))

    def build(self) -> PeftModel:
        sizes = self.manifest["constructor_args"]
        token = sizes["token_network"]
        stages = len(token["LGA_block"])
        normalization, eps = OFFSETS[token["kind"]]
        assert (token["alpha"], token["beta"]) == (ALPHA, BETA)
        width = sizes["embed_dim"]
        encoder = ViTConfig(
            hidden_size=width,
            num_hidden_layers=sizes["depth"],
            num_attention_heads=sizes["num_heads"],
            intermediate_size=4 * width,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config = Any2PointConfig(
            encoder_config=encoder,
            height_axis=1,
            num_tokens=token["input_points"] >> stages,
            tokenizer="point_pn_full",
            tokenizer_width=token["embed_dim"] * math.prod(token["dim_expansion"]),
            tokenizer_expansions=token["dim_expansion"],
            tokenizer_neighbors=token["k_neighbors"],
            tokenizer_blocks=token["LGA_block"],
            released={
                "offset_normalization": normalization,
                "offset_eps": eps,
                "final_norm_eps": 1e-5,
                "sampling_min_squared_norm": self.manifest["input"]["sampling_min_squared_norm"],
            },
            pooling=["max_plus_first_mean"],
            head_widths=[512, 256],
            head_bias=True,
            head_dropout=0.0,
            num_labels=sizes["num_classes"],
        )
        base = Any2PointForPointCloudClassification(config, encoder=ViTModel(encoder, add_pooling_layer=False))
        model = get_peft_model(base, APPTConfig.published())
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            base.any2point.class_token.position.zero_()
            for name, tensor in self.original.items():
                if name == "cls_pos":  # which nothing reads
                    continue
                if ".attn.qkv." in name:
                    number, leaf = name.split(".")[1], name.rpartition(".")[2]
                    for own, rows in zip("qkv", tensor.chunk(3), strict=True):
                        path = f"{LAYERS}{number}.base_layer.attention.{own}_proj.{leaf}"
                        tensors[path].copy_(rows)
                    continue
                own = tensors[ours_of(name)]
                own.copy_(tensor.view(own.shape))
        return model.eval()

    def check(self, key: str, found: torch.Tensor, tolerance: float = 1e-4) -> None:
        """Compare with a stored tensor, to a part of its size."""
        expected = self.expected[key]
        found = found.detach().float().reshape(-1)[: expected.numel()].view(expected.shape)
        limit = tolerance * max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(found, expected, atol=limit, rtol=0, msg=lambda text: f"{key}: {text}")


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    return Case(request.param)


@torch.no_grad()
def test_every_stored_output_agrees(case):
    model, depth = case.model, case.manifest["constructor_args"]["depth"]
    core = model.get_base_model().any2point
    count = 1 + core.config.num_tokens
    found: dict[str, torch.Tensor] = {}
    lengths = []
    layers = [module for module in model.modules() if isinstance(module, APPTLayer)]
    core.point_tokenizer.register_forward_hook(lambda module, args, out: found.update({"eval.tokens": out.tokens}))
    core.register_forward_hook(lambda module, args, out: found.update({"eval.features": out.pooler_output}))

    def in_order(sequence: torch.Tensor) -> torch.Tensor:
        # The program has prompts between class token and tokens.
        return torch.cat([sequence[:, :1], sequence[:, count:], sequence[:, 1:count]], dim=1)

    def read(number, states):
        lengths.append(states.shape[1])
        if number == 0:
            found["eval.layer0_in"] = in_order(states)
            found["eval.prompt"] = states[:, count:]

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, args, number=number: read(number, args[0]))
        layer.register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.layer{number}_out": in_order(out)})
        )
    logits = model(points=case.points).logits
    found["eval.logits"] = logits
    assert lengths == case.manifest["sequence_lengths_of_the_layers"] and len(lengths) == depth
    kept = dict(found)
    kept["eval.logits_last_cloud_alone"] = model(points=case.points[-1:]).logits
    kept["eval.logits_reversed_batch"] = model(points=case.points.flip(0)).logits
    stored = [key for key in case.expected if key.startswith("eval.")]
    assert stored
    for key in stored:
        case.check(key, kept[key])
    # A mean of each cloud's own does not look at the others; the table of the offsets of a whole batch does.
    core.config.pooling = ["max_plus_mean"]
    if core.config.released.offset_normalization != "batch_std":
        torch.testing.assert_close(model(points=case.points[-1:]).logits, model(points=case.points).logits[-1:])


def test_a_training_step_agrees(case):
    model = case.model.train()
    output = model(points=case.points).logits
    case.check("train.logits", output)
    labels = torch.tensor(case.manifest["labels"])
    # The program shares the smoothing among the other classes, torch among all.
    classes = output.shape[1]
    smoothing = case.manifest["smoothing"] * classes / (classes - 1)
    loss = torch.nn.functional.cross_entropy(output, labels, label_smoothing=smoothing)
    case.check("train.loss", loss)
    loss.backward()
    parameters = dict(model.named_parameters())
    for key in case.expected:
        if key.startswith("grad."):
            case.check(key, parameters[ours_of(key.removeprefix("grad."))].grad, 1e-3)
        elif key.startswith("train.after."):
            buffers = dict(model.named_buffers())
            case.check(key, buffers[ours_of(key.removeprefix("train.after."))])
    trained = {name for name, weight in parameters.items() if weight.requires_grad}
    assert trained == {ours_of(name) for name in case.manifest["trained"]}
