"""SpatialLM computes what the released program does, in every part, and generates the same tokens."""

from functools import partial

import pytest
import torch

from hf_any3d.conversions.spatiallm.names import convert_spatiallm_state_dict
from tests.conversions.undone import as_theirs
from tests.modeling.spatiallm.reference_case import SpatialLMCase

NAMES = ("qwen", "llama")


@pytest.fixture(scope="module", params=NAMES)
def case(request) -> SpatialLMCase:
    return SpatialLMCase(request.param)


def assert_close(case: SpatialLMCase, key: str, found: torch.Tensor, kind: str = "features") -> None:
    torch.testing.assert_close(found, case.expected[key], atol=case.tolerance[kind], rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_every_part_of_the_encoder(case):
    body = case.model.base_model
    clouds = case.clouds(0, 1)
    encoded = body.point_encoder(**clouds, return_dict=True)
    assert encoded.offsets.diff(prepend=torch.zeros(1, dtype=torch.long)).tolist() == case.tokens
    contexts, features = body.encode(**clouds), body.get_point_features(**clouds)
    for number, (cells, states) in enumerate(
        zip(encoded.grid_coord.split(case.tokens), encoded.last_hidden_state.split(case.tokens), strict=True)
    ):
        assert torch.equal(cells, case.expected[f"{number}.grid"])
        assert_close(case, f"{number}.encoder", states)
        assert_close(case, f"{number}.fourier", body.positions(cells))
        assert_close(case, f"{number}.input_proj", contexts[number])
        assert_close(case, f"{number}.features", features[number])


@torch.no_grad()
@pytest.mark.parametrize("draws", ("a", "b"))
def test_shuffled_curves(case, draws, monkeypatch):
    encoder = case.model.point_encoder
    for number in range(2):
        drawn = iter(case.manifest["permutations"][draws])
        monkeypatch.setattr(encoder, "_turns", lambda drawn=drawn: next(drawn))
        (features,) = case.model.get_point_features(**case.clouds(number))
        assert_close(case, f"{number}.features_{draws}", features)


@pytest.mark.slow
def test_logits_loss_and_gradients(case):
    model, batch = case.model, case.batch
    model.zero_grad()
    embedded = model.spatiallm.embed(batch["input_ids"], **case.clouds(0, 1)).inputs_embeds
    output = model(**batch, **case.clouds(0, 1))
    # What fills rows up is no part of a row.
    real = batch["attention_mask"].bool()
    for key, found, kind in (("inputs_embeds", embedded, "features"), ("logits", output.logits, "logits")):
        torch.testing.assert_close(found[real], case.expected[key][real], atol=case.tolerance[kind], rtol=0)
    assert_close(case, "loss", output.loss[None], "loss")
    output.loss.backward()
    found = gradients(case)
    for name, norm in case.manifest["gradients"]["norms"].items():
        torch.testing.assert_close(float(found[name].norm()), norm, rtol=1e-4, atol=1e-6)
    for key, expected in case.expected.items():
        if key.startswith("grad."):
            flat = found[key.removeprefix("grad.")].flatten()
            entries = flat[:: max(1, flat.numel() // 1500)]
            torch.testing.assert_close(entries, expected, atol=1e-4 * float(expected.abs().max()) + 1e-6, rtol=0)


def gradients(case: SpatialLMCase) -> dict[str, torch.Tensor]:
    """Gradients by the names of the released program."""
    own = {name: own.grad for name, own in case.model.named_parameters() if own.grad is not None}
    # A head that is tied to the embeddings has no gradient of its own.
    is_tied = case.published_config["tie_word_embeddings"]
    stored = {name: tensor for name, tensor in case.original.items() if name != "lm_head.weight" or not is_tied}
    return as_theirs(partial(convert_spatiallm_state_dict, config=case.model.config), stored, own)


def settings(case: SpatialLMCase) -> dict:
    fixed = case.manifest["constructor_args"]
    quiet = [fixed[name] for name in ("pad_token_id", "point_start_token_id", "point_end_token_id", "point_token_id")]
    return {"max_new_tokens": 20, "eos_token_id": None, "suppress_tokens": quiet, "do_sample": False}


@pytest.mark.slow
def test_greedy_tokens_and_the_encoder_runs_once(case):
    calls = []
    handle = case.model.point_encoder.register_forward_hook(lambda *_: calls.append(1))
    for number, expected in enumerate(case.manifest["generation"]["tokens"]):
        calls.clear()
        prompt = case.prompt(number)
        found = case.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), **case.clouds(number), **settings(case)
        )
        assert found[0, prompt.shape[1] :].tolist() == expected
        assert len(calls) == 1, "the clouds were not read, or read again for every token"
    handle.remove()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [[1, 120, 122, 121]]}, "input_ids has 1 placeholders .*expected 10"),
        ({"grid_coord": "far"}, "grid_coord has a cell .*; expected less than num_bins, 1280"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    case = SpatialLMCase("qwen")
    given = {"input_ids": case.prompt(0), **case.clouds(0)} | changes
    if changes.get("grid_coord") == "far":
        given["grid_coord"] = [case.clouds(0)["grid_coord"][0] + 1279]
    given["input_ids"] = torch.as_tensor(given["input_ids"])
    with pytest.raises(ValueError, match=message):
        case.model(**given)
