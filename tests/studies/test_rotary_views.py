"""The study of ways to combine views: its small encoder, its controls, and complete runs."""

import pytest
import torch
from torch import nn

from studies import earlier_recipe, rotary_pretraining, rotary_views
from studies.tables import read_table
from tests.examples.conftest import tiny_shapes

TINY = {
    "hidden_size": 72,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "length": 16,
    "held_out_rows": 8,
    "batch_size": 4,
    "steps": 12,
}


@pytest.fixture
def tiny(monkeypatch):
    """Settings of a tiny encoder, with a short text."""
    monkeypatch.setattr(rotary_pretraining, "library_docstrings", lambda: ["words of one module " * 20] * 3)
    return rotary_pretraining.PRETRAINING | TINY


def test_pretraining_lowers_the_loss_and_is_stored(tiny, tmp_path, monkeypatch):
    made = rotary_pretraining.pretrained_encoder(tmp_path / "encoder", tiny)
    assert made["loss_after"] < made["loss_before"]
    assert made["loss_after_at_one_place"] != made["loss_after"]
    assert (tmp_path / "encoder" / "model.safetensors").is_file()
    monkeypatch.setattr(rotary_pretraining, "train", None)
    assert rotary_pretraining.pretrained_encoder(tmp_path / "encoder", tiny) == made
    with pytest.raises(TypeError):
        rotary_pretraining.pretrained_encoder(tmp_path / "encoder", tiny | {"steps": 13})
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_blind_tokenizer_does_not_depend_on_the_place_of_a_cloud(tiny, tmp_path):
    rotary_views.pretrained_encoder(tmp_path / "encoder", tiny)
    points = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0))

    def tokens(name: str, shift: float) -> torch.Tensor:
        model: nn.Module = rotary_views.build(rotary_views.ARMS[name], 0, ["a", "b"], tmp_path / "encoder").eval()
        with torch.no_grad():
            return model.base_model.model.any2point.point_tokenizer(points + shift).tokens

    assert torch.allclose(tokens("blind_split_heads", 0.0), tokens("blind_split_heads", 2.0), atol=1e-4)
    assert not torch.allclose(tokens("split_heads", 0.0), tokens("split_heads", 2.0), atol=1e-2)


def test_only_rules_that_separate_views_recover_offsets():
    encoder = rotary_pretraining.new_model(rotary_pretraining.PRETRAINING).model
    rows = tiny_shapes(rows=32)["test"]
    recovered = {
        rule: rotary_views.recovered_offsets(encoder, rule, rows, 16)
        for rule in ("split_frequencies", "split_heads", "mean_angle", "first_view")
    }
    assert recovered["split_frequencies"] > 0.8
    assert recovered["split_heads"] > 0.8
    assert recovered["mean_angle"] < 0.5
    assert recovered["first_view"] < 0.5


def test_study_pretrains_trains_and_does_not_repeat_runs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rotary_views, "PRETRAINING", tiny)
    monkeypatch.setattr(rotary_views, "load_point_dataset", lambda name: tiny_shapes())
    monkeypatch.setitem(earlier_recipe.TRAINING, "per_device_train_batch_size", 4)
    arms = ["split_frequencies", "split_heads", "random", "blind_mean_angle", "blind_unturned"]
    options = ["--output-dir", str(tmp_path), "--epochs", "1", "--seeds", "0", "--pretraining-steps", "2"]
    options += ["--arms", *arms]
    rotary_views.main(options)
    summary = read_table(tmp_path / "rotary_views.parquet")
    assert [row["arm"] for row in summary["rows"]] == arms
    assert len({round(row["loss"], 6) for row in summary["rows"]}) == len(arms)
    assert list(summary["recovered_offsets"]) == ["split_frequencies", "split_heads", "mean_angle", "first_view"]
    assert summary["pretraining"]["stamp"]["settings"]["steps"] == 2
    assert "| `split_heads` |" in (tmp_path / "rotary_views.md").read_text()
    monkeypatch.setattr(rotary_views, "train_once", None)
    rotary_views.main(options)
    assert "Blind tokenizer" in capsys.readouterr().out
