"""Other point encoders under the decoder: pretrained, frozen, adapted, saved."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hf_any3d import ActModel, Any2PointModel, PointTransformerV3Model, Uni3DModel
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from tests.common.case import relative_difference, varied_clouds
from tests.common.models import case_of
from tests.tiny_detr3d import SIZES, objects

SETTINGS = {
    name: SIZES[name] for name in ("hidden_size", "decoder_layers", "decoder_ffn_dim", "num_queries", "num_labels")
}
ENCODERS = [ActModel, Uni3DModel, Any2PointModel, PointTransformerV3Model]
over_encoders = pytest.mark.parametrize("encoder_class", ENCODERS, ids=lambda kind: kind.__name__)


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
    with pytest.raises(ValueError, match="points_mask with a point encoder of type 'act3d'"):
        act(padded[..., :3], points_mask=mask)


def test_an_adapter_of_peft_trains_the_encoder_of_a_detector(saved, tmp_path):
    directory = saved(ActModel)[0]
    base = detector(directory)
    # PEFT copies no lists of modules, but what is in them.
    decoder = [f"detr3d.{name}" for name in ("positions", "layer_norm", "layers.0", "layers.1")]
    decoder += ["detr3d.memory_projection.0", "detr3d.memory_projection.1"]
    heads = [name for name, _ in base.named_children() if name != "detr3d"]
    config = LoraConfig(r=2, target_modules=r".*point_encoder.*\.(qkv|proj)", modules_to_save=[*decoder, *heads])
    model = get_peft_model(base, config)
    cloud = varied_clouds(2)
    model.train()
    model(cloud, labels=objects(3)[::2]).loss.backward()
    moved = [name for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    assert moved and all("point_encoder" in name for name in moved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        expected = model.eval()(cloud).logits
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(detector(directory), tmp_path).eval()
        assert relative_difference(again(cloud).logits, expected) < 1e-4
