"""Checkpoints of both training stages of PatchAlign3D become directories that open."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForZeroShotPointCloudSegmentation, PatchAlign3DConfig, PatchAlign3DModel
from hf_any3d.cli import app
from hf_any3d.conversions import convert_patchalign3d
from hf_any3d.conversions.patchalign3d.convert import convert_patchalign3d_encoder
from tests.conversions.aligned_originals import patchalign3d
from tests.modeling.aligned_case import AlignedCase
from tests.reference.fill import points


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A directory, converted on the command line from a file of the second stage."""
    folder = tmp_path_factory.mktemp("patchalign3d")
    torch.save(patchalign3d(), folder / "patchalign3d.pt")
    arguments = ["convert", folder / "patchalign3d.pt", "--output", folder / "out"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "PatchAlign3DForZeroShotPointCloudSegmentation" in result.output
    return folder / "out"


@pytest.mark.slow
def test_a_file_of_the_second_stage_opens_with_the_same_weights(second):
    model = AutoModelForZeroShotPointCloudSegmentation.from_pretrained(second)
    content = patchalign3d()
    expected, _ = convert_patchalign3d_encoder(content["model"], content["proj"])
    ours = AutoModel.from_pretrained(second).state_dict()
    assert ours.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(ours[name], tensor)] == []
    assert model.alignment.logit_scale.item() == 3.5
    clouds = torch.from_numpy(points("cloud", 1, 200, 3))
    texts = torch.randn(3, 1280, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(clouds, text_embeds=texts)
    cosines = output.patch_embeds @ torch.nn.functional.normalize(texts, dim=-1).T
    # The learned scale is no part of the scores.
    torch.testing.assert_close(output.patch_logits, cosines / 0.07)
    assert output.logits.shape == (1, 200, 3)


def test_the_config_has_the_deviations_of_the_program_and_the_text_tower(second):
    stored = json.loads((second / "config.json").read_text())
    assert stored["parts"] == {"text_tower": {"name_or_path": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"}}
    assert stored["sampling_min_squared_norm"] == 1e-3 and stored["exchange_axes"]
    assert (stored["num_groups"], stored["group_size"], stored["num_attention_heads"]) == (128, 32, 6)
    assert stored["hypothesis_templates"] == ["{}", "a {}", "{} part"]
    processor = AutoProcessor.from_pretrained(second)
    assert (processor.num_points, list(processor.features), processor.axes) == (2048, ["xyz"], "xyz")
    card = (second / "README.md").read_text()
    assert "not evaluated" in card and "0.07" in card
    assert "3 channels per point: coordinates." in card


@pytest.mark.slow
def test_a_file_of_the_first_stage_opens_for_pretraining(tmp_path):
    torch.save(patchalign3d(stage=1), tmp_path / "last.pt")
    facts = convert_patchalign3d(tmp_path / "last.pt", tmp_path / "out")
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert facts["model"] == type(model).__name__ == "PatchAlign3DForPreTraining"
    assert model.config.projection_dim == 768 and model.config.part("text_tower").name_or_path is None
    assert "DINOv2" in (tmp_path / "out" / "README.md").read_text()


def test_the_published_size_has_exactly_our_tensors():
    case = AlignedCase("patchalign3d_segment")
    parts = [
        {name: torch.empty(shape, device="meta") for name, (shape, _) in case.manifest[entry].items()}
        for entry in ("state_dict", "state_dict_proj")
    ]
    state, sizes = convert_patchalign3d_encoder(*parts)
    with torch.device("meta"):
        own = PatchAlign3DModel(PatchAlign3DConfig(**sizes))
    assert own.config.to_dict() | sizes == PatchAlign3DConfig().to_dict() | {"patch_widths": [128, 256, 512]}
    assert {name: tensor.shape for name, tensor in own.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert len(case.manifest["state_dict"]) == 160
    encoder = [tensor for name, tensor in own.named_parameters() if not name.startswith("projection.")]
    assert sum(tensor.numel() for tensor in encoder) == 21_858_816


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("model", {"gamma": torch.ones(1)}, "belong to no known part: gamma"),
        ("model", {"cls_token": None}, "'class_token.token' is missing"),
        ("proj", {"proj.bias": None}, "tensors do not fit; missing: patchalign3d.projection.bias"),
        ("temp", {"log_scale": torch.tensor(torch.nan)}, "NaN or infinite"),
        ("temp", {"other": torch.tensor(1.0)}, "left over: other"),
        ("temp", None, "no entry 'temp'.*1280 channels; expected 768"),
        ("proj", None, "expected one under 'proj'"),
    ],
)
def test_other_files_are_refused_in_one_line(entry, change, message, tmp_path):
    content = patchalign3d()
    if change is None:
        del content[entry]
    else:
        content[entry] = {name: t for name, t in (content[entry] | change).items() if t is not None}
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=message) as error:
        convert_patchalign3d(tmp_path / "last.pt", tmp_path / "out")
    assert str(error.value).startswith(str(tmp_path / "last.pt")) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
