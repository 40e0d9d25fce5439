"""ReCon's files, converted and opened, against stored runs of the released programs, tensor by tensor."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.conversions import convert_recon
from hf_any3d.conversions.programs import convert_files
from hf_any3d.modeling.act import ActModel
from hf_any3d.modeling.recon import ReconForPreTraining, ReconForZeroShotPointCloudClassification
from hf_any3d.training.arguments import AdapterArguments
from hf_any3d.training.models import CLASSES, PARTS, SCENES, PointModelArguments, build_model
from hf_any3d.training.requests import parse_arguments
from hf_any3d.training.tasks import Classification
from hf_any3d.training.trainer import PointTrainer
from tests.common.models import minigpt3d, prompts
from tests.conversions.start_case import FOLDER, StartCase, filled
from tests.modeling.act.reference_case import without_chance
from tests.reference.fill import fill
from tests.tiny_act import SMALL
from tests.turns import ALL_PAIRS, some

TOLERANCE = 1e-4
CASES = sorted(path.stem for path in FOLDER.glob("start_recon_*.json"))
Shapes = dict[str, tuple[list[int], str]]


class ReconCase(StartCase):
    """A stored run whose file may have other tensors, or tensors that hold the numbers of their names."""

    @property
    def shapes(self) -> Shapes:
        """Shapes and dtypes of the released state dict."""
        return self.manifest["state_dict"]

    @property
    def options(self) -> dict[str, int]:
        """What no tensor shows."""
        settings = {
            **self.arguments,
            **self.arguments.get("fixed", {}),
            **self.arguments.get("transformer_config", {}),
        }
        names = {"num_groups": "num_group", "group_size": "group_size", "num_attention_heads": "num_heads"}
        return {ours: settings[theirs] for ours, theirs in names.items()}

    def features(self, key: str) -> torch.Tensor:
        """Return features of a frozen encoder, which the case gives."""
        return 20 * torch.from_numpy(fill(self.manifest[key]["name"], self.manifest[key]["shape"]))

    def converted(self, folder: Path, shapes: Shapes | None = None, numbered: bool = False) -> Path:
        """Convert the file of a released program with such tensors."""
        folder.mkdir(exist_ok=True)
        state = {}
        for number, (name, (shape, dtype)) in enumerate((shapes or self.shapes).items()):
            kind = getattr(torch, dtype)
            state[name] = torch.full(shape, number, dtype=kind) if numbered else filled(name, shape, dtype)
        convert_files([self.write(folder, state)], folder / "out", self.options)
        return folder / "out"

    def renames(self, opener: Any, folder: Path, shapes: Shapes | None = None) -> dict[str, list[str]]:
        """Return our names of each released tensor."""
        model = opener.from_pretrained(self.converted(folder, shapes, numbered=True))
        released = list(shapes or self.shapes)
        found: dict[str, list[str]] = {name: [] for name in released}
        for name, tensor in model.state_dict().items():
            assert tensor.min() == tensor.max(), f"{name} is made of several released tensors"
            found[released[int(tensor.max())]].append(name)
        return found

    def wrong_norms(self, model: nn.Module, renames: dict[str, list[str]], key: str = "gradient_norms") -> dict:
        """Return gradient norms that are not within 1 % of the stored ones: ours and those, by name."""
        expected = self.manifest[key]
        least = 1e-6 * max(norm for norm in expected.values() if norm is not None)
        own = dict(model.named_parameters())
        wrong = {}
        for name, norm in expected.items():
            gradients = [own[ours].grad for ours in renames[name] if own[ours].grad is not None]
            found = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
            if not abs(found - (norm or 0)) <= max(0.01 * (norm or 0), least):
                wrong[name] = (found, norm)
        return wrong


def of_kind(kind: str) -> list[str]:
    return [name for name in CASES if f"_{kind}" in name]


def outputs_of(model: nn.Module, *names: str) -> dict[str, torch.Tensor]:
    """Keep the outputs of modules in a dictionary, which later calls of the model fill."""
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    return seen


def assert_all_agree(case: ReconCase, found: dict[str, torch.Tensor], *prefixes: str) -> None:
    stored = {key for key in case.expected if key.startswith(prefixes or "")}
    assert stored <= found.keys(), stored - found.keys()
    errors = {key: case.error(key, found[key]) for key in stored}
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("name", of_kind("pretrain"))
def test_pretraining_computes_the_stored_losses_and_gradients(name, tmp_path):
    case = ReconCase(name)
    own = case.manifest["extra_state_dict_of_self_contrastive"]
    shapes = {**case.shapes, **own}
    groups = case.options["num_groups"]
    inputs = {
        "points": case.points,
        "mask": torch.zeros(len(case.points), groups, dtype=torch.bool).scatter_(
            1, torch.tensor(case.manifest["masked_indices"]), True
        ),
        "image_embeds": case.features("image_features"),
        "text_embeds": case.features("text_features"),
    }
    texts = case.manifest["texts"]
    labels = torch.tensor([texts.index(text) for text in texts])
    # The released setting, and that with a fourth loss
    model = ReconForPreTraining.from_pretrained(case.converted(tmp_path))
    four = ReconForPreTraining.from_pretrained(case.converted(tmp_path / "four", shapes))
    # Before a step changes the statistics of norms
    with torch.no_grad():
        found = {"eval.all_tokens": model.recon(case.points).last_hidden_state}
    for mode in ("eval.", "train."):
        for one in (model, four):
            if mode == "train.":
                without_chance(one)
            parts = ("recon.patch_encoder", "recon.blocks.layers.0", "recon.norm", "decoder_norm")
            seen = outputs_of(one, *parts)
            with torch.set_grad_enabled(mode == "train."):
                output = one(**inputs, labels=labels if one is four else None)
            normed = seen["recon.norm"]
            stages = {
                "tokens": seen["recon.patch_encoder"],
                "block0": seen["recon.blocks.layers.0"],
                "visible": normed[:, 3:],
                **{f"{token}_token": normed[:, place] for place, token in enumerate(("cls", "image", "text"))},
                "decoded": seen["decoder_norm"],
                "predicted": output.predictions,
                "image_token_projected": output.image_predictions,
                "text_token_projected": output.text_predictions,
                "loss_mdm": output.reconstruction_loss,
                "loss_csc_img": output.image_loss,
                "loss_csc_text": output.text_loss,
            }
            stages |= {"loss": output.loss} if one is model else {"loss_smc": output.contrast_loss}
            if one is four:
                stages["loss_with_smc"] = output.loss
            found |= {mode + key: tensor for key, tensor in stages.items()}
            found["centers"] = output.centers
            if mode == "train.":
                output.loss.backward()
    assert_all_agree(case, found)
    originals = case.renames(ReconForPreTraining, tmp_path / "numbered", shapes)
    released = {key: value for key, value in originals.items() if key not in own}
    assert case.wrong_norms(model, released) == {}
    assert case.wrong_norms(four, originals, "gradient_norms_with_smc") == {}


@pytest.mark.parametrize("name", of_kind("cls"))
def test_classifiers_compute_the_stored_logits_and_gradients(name, tmp_path):
    case = ReconCase(name)
    labels = torch.tensor(case.manifest["labels"])
    model = AutoModelForPointCloudClassification.from_pretrained(case.converted(tmp_path))
    found = {}
    for mode in ("eval.", "train."):
        if mode == "train.":
            without_chance(model)
        seen = outputs_of(model, "recon.patch_encoder", "recon.blocks.layers.0", "recon")
        output = model(case.points, labels=labels)
        stages = {
            "tokens": seen["recon.patch_encoder"],
            "block0": seen["recon.blocks.layers.0"],
            "normed": seen["recon"].last_hidden_state,
            "feature": seen["recon"].pooler_output,
            "logits": output.logits,
            "loss": output.loss,
        }
        found |= {mode + key: tensor for key, tensor in stages.items()}
    output.loss.backward()
    assert_all_agree(case, found, "eval.", "train.")
    originals = case.renames(AutoModelForPointCloudClassification, tmp_path / "numbered")
    assert case.wrong_norms(model, originals) == {}


def without_head(case: ReconCase, extra: str | None) -> dict:
    kept = {name: shape for name, shape in case.shapes.items() if not name.startswith("cls_head_finetune.")}
    return kept if extra is None else kept | case.manifest["extra_state_dict"][extra]


@pytest.mark.parametrize("name", of_kind("cls"))
def test_other_files_of_a_classifier_s_transformer_compute_what_is_stored(name, tmp_path):
    case = ReconCase(name)
    found = {}
    with torch.no_grad():
        linear = case.converted(tmp_path, without_head(case, "linear"))
        found["linear.logits"] = AutoModelForPointCloudClassification.from_pretrained(linear)(case.points).logits
        plain = case.converted(tmp_path / "plain", without_head(case, None))
        found["svm.feature"] = AutoModel.from_pretrained(plain)(case.points).pooler_output
        texts = case.converted(tmp_path / "texts", without_head(case, "zero_shot"))
        # The ratio of the case, which no tensor shows
        zero_shot = ReconForZeroShotPointCloudClassification.from_pretrained(texts, text_weight=0.15)
        queries = zero_shot.recon(case.points).last_hidden_state
        found["zero_shot.feature"] = zero_shot.project(queries)
    assert_all_agree(case, found, "linear.", "svm.", "zero_shot.")


@pytest.mark.parametrize("kind", ["cls", "pretrain"])
def test_projections_into_the_space_of_clip_open_with_its_text_tower(kind, tmp_path):
    (case,) = map(ReconCase, of_kind(kind))
    shapes = without_head(case, None) if kind == "cls" else case.shapes
    width = shapes_width(shapes)
    for query in ("img", "text"):
        own = {f"{query}_proj.weight": ([512, width], "float32"), f"{query}_proj.bias": ([512], "float32")}
        shapes = shapes | own
    state = {theirs: filled(theirs, shape, dtype) for theirs, (shape, dtype) in shapes.items()}
    convert_files([case.write(tmp_path, state)], tmp_path / "out", case.options | {"text_weight": 0.15})
    model = ReconForZeroShotPointCloudClassification.from_pretrained(tmp_path / "out")
    assert model.config.part("text_tower").name_or_path == "openai/clip-vit-base-patch32"
    assert (model.config.aligned_with, model.config.text_weight) == ("CLIP ViT-B/32", 0.15)
    assert torch.equal(model.text_projection.weight, state["text_proj.weight"])


@pytest.mark.parametrize("name", of_kind("cls"))
def test_a_classifier_starts_from_pretraining(name, tmp_path):
    case = ReconCase(name)
    started = ReconCase(name.replace("_cls", "_pretrain"))
    start = started.converted(tmp_path)
    head = AutoModelForPointCloudClassification.from_pretrained(case.converted(tmp_path / "head"))
    model = AutoModelForPointCloudClassification.from_pretrained(
        start, **{key: getattr(head.config, key) for key in ("num_labels", "head_widths")}
    )
    model.classifier.load_state_dict(head.classifier.state_dict())
    with torch.no_grad():
        found = {"started.feature": model.recon(case.points).pooler_output}
        found["started.logits"] = model(case.points).logits
    assert_all_agree(case, found, "started.")


@pytest.mark.parametrize("name", of_kind("cls"))
def test_the_recipe_trains_with_the_groups_of_the_program(name, tmp_path):
    case = ReconCase(name)
    renames = case.renames(AutoModelForPointCloudClassification, tmp_path)
    expected = {}
    for theirs, (shape, _) in case.shapes.items():
        is_fast = "cls" in theirs
        is_spared = len(shape) == 1 or theirs.endswith(".bias") or "token" in theirs
        for ours in renames[theirs]:
            expected[ours] = (2e-4 if is_fast else 2e-5, 0.05 if is_fast or not is_spared else 0.0)
    model = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "out")
    recipe = Path(__file__).parents[2] / "examples" / "recipes" / "recon_scanobjectnn_pb_t50_rs.yaml"
    words = [str(recipe), "--output_dir", str(tmp_path / "run"), "--eval_strategy", "no", "--use_cpu"]
    *_, arguments = parse_arguments(Classification.argument_classes(), words)
    groups = PointTrainer(model, arguments).create_optimizer().param_groups
    names = {id(parameter): ours for ours, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    assert found == {ours: pytest.approx(expected[ours]) for ours in names.values()}


RELEASED = json.loads((FOLDER / "start_manifest_recon.json").read_text())
# What the number of labels tells of a classifier, and the settings of pretraining
GROUPS = {"classifier_15": 128, "part_segmentation": 128}


@pytest.mark.slow
# Of the sizes of one kind the smallest; stored runs have the tensors of the other kinds.
@pytest.mark.parametrize(
    "name",
    some(RELEASED, left_out=["pretrain_base", "pretrain_small", "classifier_15", "zero_shot", "part_segmentation"]),
)
def test_files_of_the_released_sizes_open_with_every_tensor(name, tmp_path):
    shapes = RELEASED[name]["tensors"]
    state = {
        f"module.{key}": torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in shapes.items()
    }
    towers = {
        "module.img_encoder.blocks.0.norm1.weight": torch.zeros(4),
        "module.text_encoder.ln.bias": torch.zeros(4),
    }
    torch.save({"base_model": state | (towers if "pretrain" in name else {}), "epoch": 300}, tmp_path / "file.pth")
    del state
    facts = convert_files([tmp_path / "file.pth"], tmp_path / "out", {})
    assert facts["parameters"] == RELEASED[name]["parameters"]
    assert len(facts["left_out"]) == (2 if "pretrain" in name else 0)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.num_groups, config.group_size) == (GROUPS.get(name, 64), 32)
    assert (config.hidden_size, config.num_attention_heads) == (shapes_width(shapes), shapes_width(shapes) // 64)


def shapes_width(shapes: Shapes) -> int:
    return next(shape[-1] for key, (shape, _) in shapes.items() if key.endswith("cls_token"))


def test_plain_blocks_are_those_of_act(tmp_path):
    case = ReconCase(of_kind("pretrain")[0])
    recon = AutoModel.from_pretrained(case.converted(tmp_path))
    facts = convert_files([case.write(tmp_path)], tmp_path / "plain", case.options | {"plain_blocks": True})
    assert [part.partition(" (")[0] for part in facts["left_out"]] == [
        "the queries of image and text",
        "the layers of the queries in its blocks",
        "the decoder",
        "the projections to features",
    ]
    plain = AutoModel.from_pretrained(tmp_path / "plain")
    assert type(plain) is ActModel and "not ReCon" in (tmp_path / "plain" / "README.md").read_text()
    theirs = recon.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in plain.state_dict().items())
    with torch.no_grad():
        ours, other = (model(case.points).last_hidden_state[:, -16:] for model in (recon, plain))
    assert (ours - other).abs().max() > 0.5 * ours.abs().max()


def test_other_files_and_options_are_refused_by_name(tmp_path):
    case = ReconCase(of_kind("pretrain")[0])
    towers = case.write(tmp_path, {"Dis_encoder.norm.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="two towers"):
        convert_files([towers], tmp_path / "out", {})
    no_contrast = {name: tensor for name, tensor in case.original.items() if "contrast" not in name}
    other = case.write(
        tmp_path, {name: t for name, t in no_contrast.items() if not name.startswith("MAE_encoder.img")}
    )
    with pytest.raises(ValueError, match="taken for a pretraining file of Point-MAE; expected one of ReCon"):
        convert_recon(other, tmp_path / "out")
    with pytest.raises(ValueError, match="dataset='modelnet40' with a pretraining file"):
        convert_recon(case.write(tmp_path), tmp_path / "out", dataset="modelnet40")
    classifier = ReconCase(of_kind("cls")[0])
    with pytest.raises(ValueError, match="plain_blocks=True with a classifier; expected a pretraining file"):
        convert_recon(classifier.write(tmp_path), tmp_path / "out", plain_blocks=True)
    with pytest.raises(ValueError, match="text_weight=0.1 with a classifier, which reads no texts"):
        convert_recon(classifier.write(tmp_path), tmp_path / "out", text_weight=0.1)
    with pytest.raises(ValueError, match="5 labels are of no dataset.*give --num-groups"):
        convert_recon(classifier.write(tmp_path), tmp_path / "out")


def test_training_starts_from_a_file_that_the_command_has_converted(tmp_path):
    case = ReconCase(of_kind("pretrain")[0])
    words = [f"--{name.replace('_', '-')}={value}" for name, value in case.options.items()]
    for option in ([], ["--plain-blocks"]) if ALL_PAIRS else (["--plain-blocks"],):
        folder = tmp_path / "".join(option)
        arguments = ["convert", str(case.write(tmp_path)), "--output", str(folder / "start"), *words, *option]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert ("left out" in result.output) == bool(option)
        start = AutoModel.from_pretrained(folder / "start").state_dict()
        segmentation = {"segmentation_layers": [0, 1]}
        for task, further in ((CLASSES, {}), (SCENES, segmentation), (PARTS, segmentation)):
            parts = {"category_parts": [[0, 1]]} if task == PARTS else {}
            given = PointModelArguments(model_name_or_path=str(folder / "start"), model_config=further)
            model = build_model(task, given, AdapterArguments(peft="none"), ["seat", "leg"], **parts)
            ours = model.base_model.state_dict()
            assert ours.keys() <= start.keys() and len(ours) > 0.9 * len(start)
            assert all(torch.equal(tensor, start[name]) for name, tensor in ours.items())


def test_a_chat_model_reads_recon_s_tokens():
    sizes = {name: SMALL[name] for name in ("num_groups", "group_size", "hidden_size", "num_attention_heads")}
    encoder = {"model_type": "recon", "in_channels": 6, "num_hidden_layers": 1, **sizes}
    assert minigpt3d(point_config=encoder)(**prompts()).logits.isfinite().all()
