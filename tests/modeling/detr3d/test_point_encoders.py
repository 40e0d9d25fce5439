"""Other point encoders under the decoder: pretrained, frozen, adapted, saved."""

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_any3d import (
    ActModel,
    Any2PointModel,
    AutoModelForPointCloudObjectDetection,
    GuidedAdapterConfig,
    PointTransformerV3Model,
    Uni3DModel,
    encoder_linear_pattern,
)
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.tensors import tensors_checksum
from tests.common.case import relative_difference, varied_clouds
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_detr3d import SIZES, objects
from tests.turns import ALL_PAIRS, by_turns, some

SETTINGS = {
    name: SIZES[name] for name in ("hidden_size", "decoder_layers", "decoder_ffn_dim", "num_queries", "num_labels")
}
ENCODERS = [ActModel, Uni3DModel, Any2PointModel, PointTransformerV3Model]
over_encoders = pytest.mark.parametrize(
    "encoder_class", some(ENCODERS, left_out=[Uni3DModel, Any2PointModel]), ids=lambda kind: kind.__name__
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Function from a class of encoders to the directory of a tiny one, and to the model."""
    made = {}

    def of(kind):
        if kind not in made:
            model = case_of(kind).tiny()
            directory = str(tmp_path_factory.mktemp(kind.__name__))
            model.save_pretrained(directory)
            made[kind] = directory, model
        return made[kind]

    return of


def detector(directory: str, **settings) -> Detr3DForPointCloudObjectDetection:
    torch.manual_seed(0)
    return Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(directory, **(SETTINGS | settings))


@pytest.mark.slow
@over_encoders
def test_a_frozen_encoder_keeps_its_weights_while_the_decoder_trains(encoder_class, saved, tmp_path):
    directory, encoder = saved(encoder_class)
    model = detector(directory, point_encoder_scale="unit_sphere")
    inner = model.detr3d.point_encoder.model
    assert type(inner) is encoder_class
    before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    cloud = varied_clouds(2, channels=model.config.in_channels)
    cloud[..., :3] = 3 * cloud[..., :3] + 5
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    output = model(cloud, labels=objects(3)[::2])
    output.loss.backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in inner.state_dict().items())
    assert model.detr3d.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        output = model(cloud)
        # The queries stand where the tokens are, in the frame of the cloud.
        low, high = (cloud[..., :3].amin(dim=1, keepdim=True), cloud[..., :3].amax(dim=1, keepdim=True))
        assert (output.centers >= low - 0.1).all() and (output.centers <= high + 0.1).all()
        model.save_pretrained(tmp_path)
        again = Detr3DForPointCloudObjectDetection.from_pretrained(tmp_path)
        assert relative_difference(again(cloud).logits, output.logits) < 1e-5
    assert not any(parameter.requires_grad for parameter in again.detr3d.point_encoder.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_clouds_of_different_sizes_are_a_batch_of_voxels(saved):
    model = detector(saved(PointTransformerV3Model)[0])
    clouds = [varied_clouds(1, count, 6, seed=count) for count in (48, 31)]
    padded = torch.nn.utils.rnn.pad_sequence([cloud[0] for cloud in clouds], batch_first=True)
    mask = torch.arange(48) < torch.tensor([[48], [31]])
    together = model(padded, points_mask=mask)
    for row, cloud in enumerate(clouds):
        assert relative_difference(together.logits[row], model(cloud).logits[0]) < 1e-4
    act = detector(saved(ActModel)[0])
    with raises(ValueError, naming="points_mask"):
        act(padded[..., :3], points_mask=mask)


METHODS = {
    "LORA": lambda model: LoraConfig(r=2, target_modules=encoder_linear_pattern(model)),
    "GUIDED_ADAPTER": lambda model: GuidedAdapterConfig(r=4),
}


METHODS_BY_NAME = list(METHODS)


def randomized(model):
    """Give an adapter, and what is trained with it, weights that no other model has."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder_class", "method"),
    by_turns(ENCODERS if ALL_PAIRS else ENCODERS[2:], METHODS_BY_NAME),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_adapter_trains_encoder_decoder_and_heads_and_its_directory_is_a_detector(
    encoder_class, method, saved, tmp_path
):
    directory = saved(encoder_class)[0]
    base = detector(directory)
    config = METHODS[method](base)
    model = get_peft_model(base, config)
    assert config.modules_to_save is None  # of the user, who may put it around other detectors
    cloud = varied_clouds(2, channels=base.config.in_channels)
    model.train()
    model(cloud, labels=objects(3)[::2]).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    beside = {name for name in trained if "modules_to_save" in name}
    inside = trained - beside
    assert inside and all("point_encoder" in name for name in inside)
    assert beside and not any("point_encoder" in name for name in beside)
    # Everything but the encoder is trained: as many weights as a decoder and heads have.
    own = [p for name, p in detector(directory).named_parameters() if "point_encoder" not in name]
    parameters = dict(model.named_parameters())
    assert sum(parameters[name].numel() for name in beside) == sum(map(torch.numel, own))
    randomized(model)
    with torch.no_grad():
        expected = model(cloud).logits
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "adapter_model.safetensors")
        card = (tmp_path / "README.md").read_text()
        assert "base = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(config=config)" in card
        assert f"tokens of a frozen {base.config.point_encoder_config.model_type} encoder" in card
        assert len(stored) < len(model.state_dict()) and not (tmp_path / "point_encoder").exists()
        config = type(base.config).from_pretrained(tmp_path)
        onto = PeftModel.from_pretrained(type(base).from_point_encoder_pretrained(config=config), tmp_path).eval()
        assert relative_difference(onto(cloud).logits, expected) < 1e-4
        for opened in (
            AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path),
            AutoPeftModel.from_pretrained(tmp_path),
        ):
            assert relative_difference(opened.eval()(cloud).logits, expected) < 1e-4


@pytest.mark.slow
def test_the_user_says_what_is_trained_beside_an_adapter(saved, tmp_path):
    base = detector(saved(ActModel)[0])
    config = LoraConfig(r=2, target_modules=encoder_linear_pattern(base), modules_to_save=["class_head"])
    model = get_peft_model(base, config)
    beside = [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert beside and all("class_head" in name for name in beside)
    with pytest.warns(UserWarning, match="this adapter leaves out detr3d.memory_projection.0"):
        model.save_pretrained(tmp_path)
    bare = detector(saved(ActModel)[0]).detr3d
    with pytest.raises(ValueError, match="has no default for a Detr3DModel without heads"):
        get_peft_model(bare, GuidedAdapterConfig())


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@over_encoders
def test_the_weights_of_an_encoder_are_stored_only_if_they_have_changed(encoder_class, saved, tmp_path):
    directory, encoder = saved(encoder_class)
    model = detector(directory)
    cloud = varied_clouds(2, channels=model.config.in_channels)
    record = model.config.part("point_encoder")
    assert record.name_or_path == directory and record.checksum == tensors_checksum(encoder.state_dict())
    with torch.no_grad():
        expected = model(cloud).logits
        model.save_pretrained(tmp_path / "first")
        stored = load_file(tmp_path / "first" / "model.safetensors")
        assert stored and not any("point_encoder" in name for name in stored)
        again = Detr3DForPointCloudObjectDetection.from_pretrained(tmp_path / "first")
        assert relative_difference(again(cloud).logits, expected) < 1e-5
        for parameter in again.detr3d.point_encoder.model.parameters():
            parameter.mul_(1.1)
        changed = again(cloud).logits
        with pytest.warns(UserWarning, match="weights of the point_encoder are no longer those of .* stored with"):
            again.save_pretrained(tmp_path / "second")
        assert not again.config.part("point_encoder").is_elsewhere
        last = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "second")
        assert relative_difference(last(cloud).logits, changed) < 1e-5


@pytest.mark.slow
def test_a_changed_encoder_is_stored_next_to_an_adapter(saved, tmp_path):
    base = detector(saved(ActModel)[0])
    with torch.no_grad():
        for parameter in base.detr3d.point_encoder.parameters():
            parameter.mul_(1.1)
    model = randomized(get_peft_model(base, METHODS["LORA"](base)))
    cloud = varied_clouds(2)
    with torch.no_grad():
        expected = model(cloud).logits
        with pytest.warns(UserWarning, match="weights of the point_encoder are no longer those of"):
            model.save_pretrained(tmp_path)
        assert (tmp_path / "point_encoder" / "model.safetensors").is_file()
        opened = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path)
        assert relative_difference(opened(cloud).logits, expected) < 1e-4
        with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
            PeftModel.from_pretrained(detector(saved(ActModel)[0]), tmp_path)


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
def test_other_weights_under_the_name_of_an_encoder_are_refused(tmp_path):
    case_of(ActModel).tiny().save_pretrained(tmp_path / "encoder")
    detector(str(tmp_path / "encoder")).save_pretrained(tmp_path / "model")
    other = case_of(ActModel).tiny()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "encoder")
    with raises(EncoderMismatchError, naming="encoder: the weights have checksum"):
        AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "model")


def test_clouds_are_turned_for_an_encoder_with_another_up_axis(saved):
    directory = saved(ActModel)[0]
    plain, turned = detector(directory), detector(directory, point_encoder_up_axis="y")
    cloud = varied_clouds(2)
    standing = torch.stack([cloud[..., 0], cloud[..., 2], -cloud[..., 1]], dim=-1)
    with torch.no_grad():
        expected, found = plain.detr3d.point_encoder(standing, None), turned.detr3d.point_encoder(cloud, None)
    assert torch.equal(found.tokens, expected.tokens)
    back = torch.stack([expected.centers[..., 0], -expected.centers[..., 2], expected.centers[..., 1]], dim=-1)
    assert torch.equal(found.centers, back)


@torch.no_grad()
def test_clouds_are_scaled_for_an_encoder_and_its_tokens_are_where_the_cloud_is(saved):
    encoder = detector(saved(PointTransformerV3Model)[0], point_encoder_scale="unit_sphere").detr3d.point_encoder
    clouds = [5 * varied_clouds(1, count, 6, seed=count)[0] + 7 for count in (48, 31)]
    padded = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True, padding_value=1000.0)
    mask, seen = torch.arange(48) < torch.tensor([[48], [31]]), []
    encoder.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output = encoder(padded, mask)
    for row, (own, cloud) in enumerate(zip(seen[0], clouds, strict=True)):
        assert own[:, :3].mean(dim=0).abs().max() < 1e-5 and torch.equal(own[:, 3:], cloud[:, 3:])
        assert float(own[:, :3].norm(dim=1).max()) == pytest.approx(1)
        alone = encoder(cloud[None], None)
        torch.testing.assert_close(seen[-1][0], own, atol=1e-5, rtol=0)
        there = output.centers[row][output.mask[row]]
        torch.testing.assert_close(there, alone.centers[0], atol=1e-4, rtol=0)
        low, high = cloud[:, :3].amin(dim=0), cloud[:, :3].amax(dim=0)
        assert (there >= low - 0.1).all() and (there <= high + 0.1).all() and not output.index[row].any()
