"""The study of starting weights: its first stage, what each arm takes of it, and its table."""

import pytest
import torch
from safetensors.torch import load_file

from examples import quickstart
from studies import recipe, starting_weights
from studies.tables import read_table
from tests.errors import raises


@pytest.fixture
def small(tiny_encoder, monkeypatch):
    monkeypatch.setattr(quickstart, "ENCODER", tiny_encoder)
    monkeypatch.setitem(recipe.BASE["training"], "per_device_train_batch_size", 8)
    monkeypatch.setattr(recipe, "VOTES", 2)
    for stage, seed in (("short", 0), ("long", 1)):
        first = {"per_class": 1, "epochs": 2, "points": 128, "seed": seed}
        monkeypatch.setitem(starting_weights.FIRST_STAGES, stage, first)
    monkeypatch.setattr(starting_weights, "FRESH", {"per_class": 1, "seed": 1})


def test_arms_start_from_their_part_of_the_first_stage(small, tmp_path, monkeypatch):
    started = {}

    def known(changes, seed, output_dir, start):
        started[len(started)] = start
        figures = {"accuracy": 0.7 + 0.01 * len(start) / 100 + seed / 100, "loss": 1.0}
        return {"last": figures, "votes": figures, "accuracy": 0.7, "cpu_seconds": 1.0, "seconds": 1.0}

    monkeypatch.setattr(recipe, "train_once", known)
    starting_weights.main(["--seeds", "3", "4", "--output-dir", str(tmp_path)])
    learned = load_file(tmp_path / "short.safetensors")
    none, inner, tokenizer, unadapted, everything, longer = (set(started[number]) for number in range(6))
    assert longer == tokenizer
    assert not none and inner < tokenizer < unadapted < everything < set(learned)
    assert all("guided_adapter" in name for name in everything - unadapted)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in inner} == {
        "lift", "lift_norm", "widen", "join", "join_norm"
    }  # fmt: skip
    assert all("point_tokenizer" in name for name in tokenizer)
    assert {name.rpartition(".default.")[2] for name in set(learned) - everything} == {"out.weight", "out.bias"}
    assert torch.equal(started[1][min(inner)], learned[min(inner)])
    assert torch.equal(started[5][min(inner)], load_file(tmp_path / "long.safetensors")[min(inner)])
    stored = read_table(tmp_path / "starting_weights.parquet")
    assert [row["arm"] for row in stored["rows"]] == list(starting_weights.ARMS)
    gains = stored["rows"][1]["votes"]["accuracy_gains"]
    assert gains == pytest.approx([1e-4 * len(inner)] * 2)
    assert 0 <= stored["first_stages"]["long"]["accuracy"] <= 1
    assert (
        f"| the tokenizer | 2 | {100 * (0.735 + 1e-4 * len(tokenizer)):.1f} ± 0.7 | +"
        in (tmp_path / "starting_weights.md").read_text()
    )
    # Written for the package: the same tensors, but with the gain of the tokens' norm in units of the initial one.
    starting_weights.main(["--package", str(tmp_path / "package.safetensors"), "--output-dir", str(tmp_path)])
    packaged = load_file(tmp_path / "package.safetensors")
    assert {name.partition(".modules_to_save.default.")[2] for name in tokenizer} == set(packaged)
    (weight,) = (name for name in tokenizer if name.endswith("token_norm.weight"))
    gain = (learned[weight] / packaged["token_norm.weight"]).mean()
    assert gain != pytest.approx(1)
    for name in tokenizer:
        own = packaged[name.partition(".modules_to_save.default.")[2]]
        is_scaled = name.endswith(("token_norm.weight", "token_norm.bias"))
        torch.testing.assert_close(own * gain if is_scaled else own, learned[name], msg=name)


def test_a_run_starts_from_given_tensors_and_refuses_unknown_ones(small, tmp_path, monkeypatch):
    monkeypatch.setitem(recipe.BASE["training"], "max_steps", 1)
    monkeypatch.setitem(recipe.BASE["training"], "learning_rate", 0.0)
    name = "base_model.model.any2point.point_tokenizer.modules_to_save.default.local.lift.weight"
    seen = []
    monkeypatch.setattr(
        quickstart, "vote", lambda trainer, *_: seen.append(trainer.model.state_dict()[name]) or logits
    )
    logits = torch.zeros(len(recipe.validation_split(
        quickstart.load_point_dataset("shapes")["train"], recipe.FRACTION, 0, group_column="group"
    )["validation"]), 18).numpy()  # fmt: skip
    width = recipe.settings_of(())["model"]["tokenizer_width"]
    given = torch.full((width // 2, 3), 0.25)
    recipe.train_once((), 0, tmp_path, start={name: given})
    assert torch.equal(seen[0], given)
    with raises(ValueError, naming="no tensor 'other'"):
        recipe.train_once((), 0, tmp_path, start={"other": given})
