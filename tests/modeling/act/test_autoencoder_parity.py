"""Stored runs of the released autoencoders: every tensor, loss and gradient norm."""

from contextlib import nullcontext

import pytest
import torch

from hf_any3d.modeling.act import gumbel_temperature, kl_weight, modeling_act_autoencoder
from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.point_ops import chamfer_distance
from tests.modeling.act.autoencoder_case import CASES, AutoencoderCase
from tests.turns import ALL_PAIRS, some

LOSS = 1e-5
# The case of which all paths are run, and a training step; of the others, whose teachers differ, one path.
WHOLE, PATH = "act_dvae", "eval.gumbel_hard"


@pytest.fixture(scope="module", params=some(CASES, left_out=["act_dvae_clip", "act_dvae_shallow", "act_dvae_bert"]))
def built(request):
    """A case and its model, one at a time, as they are large."""
    case = AutoencoderCase(request.param)
    return case, case.build()


@pytest.fixture
def opened(built):
    """The same, as it was built."""
    case, model = built
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield case, model.eval()
    model.zero_grad()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def observe(model, case, path):
    """Run a path of the case and return all tensors that the case may have stored."""
    settings = case.manifest["paths"][path]
    seen, hooks = {}, []

    def keep(name, output):
        over_batch = name.startswith("teacher_block") and model.config.released.attention_axis == "batch"
        seen[name] = hidden_of(output).transpose(0, 1) if over_batch else hidden_of(output)

    watched = {"encoder_tokens": model.patch_encoder, "sampled_codes": model.codebook, "feature": model.graph_decoder}
    if model.encoder is not None:
        watched["teacher_output"] = model.teacher_out
        layers = model.family.layers_of(model.encoder)
        watched |= {f"teacher_block_{number}": layer for number, layer in enumerate(layers)}
    for name, module in watched.items():
        hooks.append(module.register_forward_hook(lambda m, i, output, name=name: keep(name, output)))
    with torch.no_grad():
        output = model(case.points, settings["temperature"], 0.05, settings["hard"], case.noise(path))
    for hook in hooks:
        hook.remove()
    seen |= {name: output[name] for name in ("coarse", "fine", "whole_coarse", "whole_fine", "token_ids")}
    seen |= {"loss_recon": output.reconstruction_loss, "loss_kl": output.kl_loss}
    wholes = ((made, norm) for made in (output.whole_coarse, output.whole_fine) for norm in ("l1", "l2"))
    seen["cd_whole"] = torch.stack([chamfer_distance(made, case.points, norm) for made, norm in wholes])
    mode = {"encoder_tokens": seen.pop("encoder_tokens"), "logits": output.logits}
    mode["token_ids"] = output.logits.argmax(dim=-1)
    return {f"{path}.{name}": tensor for name, tensor in seen.items()} | {
        f"{path.partition('.')[0]}.{name}": tensor for name, tensor in mode.items()
    }


def assert_as_stored(case, seen, keys):
    assert keys
    for key in keys:
        tolerance = LOSS if "loss" in key or "cd_whole" in key else 1e-4 if key.startswith("eval") else 1e-3
        torch.testing.assert_close(
            case.stored(key, seen[key]), case.expected[key], rtol=tolerance, atol=tolerance, check_dtype=False, msg=key
        )


@pytest.mark.slow
def test_every_stored_tensor_of_every_path(opened, monkeypatch):
    # Full sequences, so that layer outputs include the prompts.
    monkeypatch.setattr(modeling_act_autoencoder, "prefix_attention", lambda encoder: nullcontext(False))
    case, model = opened
    left = {key for key in case.expected if key.partition(".")[0] in ("eval", "train") and ".step." not in key}
    left -= {key for key in left if "tokenizer_features" in key}
    paths = case.manifest["paths"]
    if case.name != WHOLE and not ALL_PAIRS:
        paths = [PATH]
        left = {key for key in left if key.startswith(PATH) or (key.startswith("eval.") and key.count(".") == 1)}
    for path in paths:
        model.train(path.startswith("train"))
        seen = observe(model, case, path)
        keys = left & set(seen)
        assert_as_stored(case, seen, sorted(keys))
        left -= keys
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("built", CASES if ALL_PAIRS else [WHOLE], indirect=True, scope="module")
def test_training_step_has_the_stored_losses_and_gradients(opened):
    case, model = opened
    output = model.train()(case.points, temperature=0.5, kl_weight=0.05, hard=False, noise=torch.zeros(1))
    output.loss.backward()
    losses = torch.stack([output.reconstruction_loss, output.kl_loss, output.loss]).detach()
    torch.testing.assert_close(losses, case.expected["train.step.losses"], rtol=LOSS, atol=LOSS)

    manifest = case.manifest
    unread = set(manifest["train.step.grad_norms_rounding_noise"])
    stored_norms, least = manifest["train.step.grad_norms"], manifest["train.step.grad_norms_skip_below"]
    unread |= {name for name, norm in stored_norms.items() if norm < least}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norms = case.original_norms(gradients)
    assert set(norms) == set(stored_norms)
    for original, stored in stored_norms.items():
        if original not in unread:
            assert norms[original] == pytest.approx(stored, rel=1e-2), original

    for key in (key for key in case.expected if ".step.after." in key):
        ours = model.get_buffer(case.our_name(key.removeprefix("train.step.after.")))
        torch.testing.assert_close(ours, case.expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_same_parameters_are_trained_and_frozen(opened):
    case, model = opened
    sizes = {n: torch.Size(shape).numel() for n, (shape, _) in case.manifest["state_dict"].items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(sizes[name] for name in case.manifest["trainable"])
    if model.encoder is not None:
        assert not any(p.requires_grad for p in model.encoder.parameters())
        read = [*model.family.layers_of(model.encoder).parameters()]
        for path in (model.family.input_norm if model.config.use_input_norm else None, model.family.final_norm):
            norm = model.family.norm_of(model.encoder, path)
            read += [] if norm is None else list(norm.parameters())
        assert sum(p.numel() for p in read) == sum(sizes[name] for name in case.manifest["frozen"])


@pytest.mark.slow
@pytest.mark.parametrize("built", CASES if ALL_PAIRS else [WHOLE], indirect=True, scope="module")
def test_teacher_features_are_the_released_targets(opened):
    case, model = opened
    stored = [key for key in case.expected if "tokenizer_features" in key]
    assert len(stored) == (1 if model.encoder is None else 2)
    for key in stored:
        ours = model.eval().teacher_features(case.points, noise=torch.zeros(1), through_graph="True" in key)
        assert_as_stored(case, {key: ours}, [key])


def test_schedules_are_the_released_ones():
    rows = AutoencoderCase("act_dvae_plain").manifest["schedule_iter_temperature_klweight"]
    for iteration, temperature, weight in rows:
        assert gumbel_temperature(iteration) == pytest.approx(temperature, abs=1e-12)
        assert kl_weight(iteration) == pytest.approx(weight, abs=1e-12)
