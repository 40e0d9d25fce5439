import pytest
import torch
from torch import nn

from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DConfig,
    MiniGPT3DForConditionalGeneration,
    set_stage,
    stage_names,
    trained_names,
)
from hf_any3d.training.trainer import decaying_parameters
from tests.modeling.minigpt3d.conversations import training_batch
from tests.modeling.minigpt3d.reference_case import ReferenceCase
from tests.modeling.minigpt3d.released_model import QFORMER_LORA, TEXT_LORA, released_model
from tests.reference.fill import points
from tests.turns import some

PUBLISHED = {1: 1_378_432, 2: 47_417_984, 3: 47_417_984, 4: 395_528}


@pytest.fixture(scope="module")
def full_size() -> MiniGPT3DForConditionalGeneration:
    with torch.device("meta"):
        return MiniGPT3DForConditionalGeneration(MiniGPT3DConfig(text_lora=TEXT_LORA, qformer_lora=QFORMER_LORA))


@pytest.mark.slow
def test_stages_train_as_many_parameters_as_published(full_size):
    trained = {}
    for stage, count in PUBLISHED.items():
        set_stage(full_size, stage)
        parameters = full_size.base_model.named_parameters()
        names = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        assert sum(parameter.numel() for parameter in names.values()) == count
        assert set(names) == set(stage_names(full_size, stage))
        trained |= names
    assert sum(parameter.numel() for parameter in trained.values()) == 47_788_936
    assert sum(parameter.numel() for parameter in full_size.parameters()) == 2_954_367_240


@pytest.mark.slow
def test_a_model_of_all_stages_stores_only_trained_parameters(full_size):
    set_stage(full_size, 4)
    full_size.config.parts = {
        part: {"name_or_path": "a/repository"} for part in ("point_encoder", "qformer", "language_model")
    }
    stored = full_size.state_dict().keys() - full_size.names_stored_elsewhere()
    full_size.config.parts = None
    assert stored == {f"minigpt3d.{name}" for name in trained_names(full_size)}
    assert sum(full_size.get_parameter(name).numel() for name in stored) == 47_788_936


def our_names(names: list[str]) -> list[str]:
    return [next(iter(convert_minigpt3d_state_dict({name: torch.zeros(1, 1, 1)}))) for name in names]


class IdentityEncoder(nn.Module):
    """Stub of a point encoder that returns its input."""

    def forward(self, points, return_dict=True):
        return type("Output", (), {"last_hidden_state": points})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "stored"), some([(1, "stage1"), (2, "stage2"), (4, "stage4")], left_out=[(1, "stage1"), (4, "stage4")])
)
def test_first_losses_and_gradients_are_the_released_ones(stage, stored):
    changes, case = {}, ReferenceCase("train")
    if stage == 1:  # whose run had no LoRA in its Q-Former yet
        changes["qformer_lora"] = None
        case = ReferenceCase("train", left_out="Qformer.*lora")
    model = released_model(case, IdentityEncoder(), **changes)
    set_stage(model, stage)
    decaying = set(decaying_parameters(model))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = [parameter for name, parameter in trained.items() if name in decaying]
    others = [parameter for name, parameter in trained.items() if name not in decaying]
    recorded = case.manifest["stages"][stored]
    parameters = dict(model.base_model.named_parameters())
    for key, names, ours in (
        ("weight_decay", recorded["weight_decay"], decayed),
        ("no_weight_decay", recorded["no_weight_decay"], others),
    ):
        theirs = [parameters[name] for name in our_names(names)]
        assert {id(parameter) for parameter in theirs} == {id(parameter) for parameter in ours}, key
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    batch = training_batch(case.manifest)
    clouds = torch.from_numpy(4 * points("minigpt3d_train", 2, 513, 384) - 2)
    losses = []
    for step in range(4):
        loss = model(**batch, points=clouds).loss
        losses.append(loss.item())
        if step == 3:
            break
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for key in ("weight_decay", "no_weight_decay"):
                norms = torch.stack([parameters[name].grad.norm() for name in our_names(recorded[key])])
                torch.testing.assert_close(norms, case[f"{stored}.grad_norm_{key}"], rtol=1e-3, atol=1e-6)
        optimizer.step()
    torch.testing.assert_close(torch.tensor(losses), case[f"{stored}.losses"], rtol=0, atol=1e-3)
