"""The comparison of ways to combine views: its small encoder, its controls, and the program as a whole."""

import json

import pytest
import torch
from torch import nn

from hf_any3d.modeling.encoders import LayerPass, TokenPlaces
from tests.examples.conftest import EXAMPLES, imported_beside_others, tiny_shapes

TINY = {
    "hidden_size": 72,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "length": 16,
    "held_out_rows": 8,
    "batch_size": 4,
    "steps": 12,
}


@pytest.fixture(scope="module")
def bench():
    with imported_beside_others("rotary_views", EXAMPLES / "benchmarks") as program:
        yield program


@pytest.fixture(scope="module")
def pretraining(bench):
    with imported_beside_others("_rotary_pretraining", EXAMPLES / "benchmarks") as module:
        yield module


@pytest.fixture
def tiny(pretraining, monkeypatch):
    """Settings of a tiny encoder, and a text as short."""
    monkeypatch.setattr(pretraining, "library_docstrings", lambda: ["words of one module " * 20] * 3)
    return pretraining.PRETRAINING | TINY


def test_texts_are_the_docstrings_of_modules_without_their_tests(pretraining, tmp_path):
    (tmp_path / "b.py").write_text('"""Last."""\nNAME = "no docstring"\n')
    (tmp_path / "a.py").write_text('def one():\n    """First."""\n')
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text('"""Left out."""')
    assert pretraining.library_docstrings(tmp_path) == ["First.", "Last."]


def test_masked_bytes_are_labels_and_all_others_stay(pretraining):
    rows = pretraining.byte_rows(["héllo wörld", "x" * 100], 16)
    masked, labels = pretraining.mask_tokens(rows, 0.3, torch.Generator().manual_seed(0))
    hidden = masked == pretraining.MASK
    assert 0.1 < hidden.float().mean() < 0.5
    assert torch.equal(torch.where(hidden, labels, masked), rows)
    assert bytes((rows.flatten() - pretraining.FIRST_BYTE).tolist()).decode().startswith("héllo wörld\n\nxx")


def test_pretraining_lowers_the_loss_and_is_kept(pretraining, tiny, tmp_path, monkeypatch):
    made = pretraining.pretrained_encoder(tmp_path / "encoder", tiny)
    assert made["loss_after"] < made["loss_before"]
    assert made["loss_after_at_one_place"] != made["loss_after"]
    assert (tmp_path / "encoder" / "model.safetensors").is_file()
    monkeypatch.setattr(pretraining, "train", None)
    assert pretraining.pretrained_encoder(tmp_path / "encoder", tiny) == made
    with pytest.raises(TypeError):
        pretraining.pretrained_encoder(tmp_path / "encoder", tiny | {"steps": 13})
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_the_control_without_rotation_turns_nothing(bench, pretraining):
    encoder = pretraining.new_model(pretraining.PRETRAINING | TINY).model
    places = TokenPlaces(torch.rand(1, 6, 5, 1) * 7, 1, 8)
    call = LayerPass(encoder, encoder.layers, torch.zeros(1, 5, 72), None, places, "split_frequencies")
    for arguments in bench.at_one_place(call):
        cosines, sines = arguments["position_embeddings"]
        assert torch.equal(cosines, torch.ones_like(cosines))
        assert torch.equal(sines, torch.zeros_like(sines))


def test_a_blind_wrap_cannot_tell_where_a_cloud_is(bench, tiny, tmp_path):
    bench.pretrained_encoder(tmp_path / "encoder", tiny)
    points = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0))

    def tokens(name: str, shift: float) -> torch.Tensor:
        model: nn.Module = bench.build(bench.ARMS[name], 0, ["a", "b"], tmp_path / "encoder").eval()
        with torch.no_grad():
            return model.base_model.model.any2point.point_tokenizer(points + shift).tokens

    assert torch.allclose(tokens("blind_split_heads", 0.0), tokens("blind_split_heads", 2.0), atol=1e-4)
    assert not torch.allclose(tokens("split_heads", 0.0), tokens("split_heads", 2.0), atol=1e-2)


def test_rules_that_keep_views_apart_tell_offsets_and_others_one_direction_of_three(bench, pretraining):
    encoder = pretraining.new_model(pretraining.PRETRAINING).model
    rows = tiny_shapes(rows=32)["test"]
    told = {
        rule: bench.offsets_told(encoder, rule, rows, 16)
        for rule in ("split_frequencies", "split_heads", "mean_angle", "first_view")
    }
    assert told["split_frequencies"] > 0.8
    assert told["split_heads"] > 0.8
    assert told["mean_angle"] < 0.5
    assert told["first_view"] < 0.5


@pytest.mark.slow
def test_the_program_pretrains_trains_and_goes_on_where_it_stopped(bench, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PRETRAINING", tiny)
    monkeypatch.setattr(bench, "load_point_dataset", lambda name: tiny_shapes())
    monkeypatch.setitem(bench.recipe.TRAINING, "per_device_train_batch_size", 4)
    arms = ["split_frequencies", "split_heads", "random", "blind_mean_angle", "blind_unturned"]
    options = ["--output-dir", str(tmp_path), "--epochs", "1", "--seeds", "0", "--pretraining-steps", "2"]
    options += ["--arms", *arms]
    bench.main(options)
    summary = json.loads((tmp_path / "rotary_views.json").read_text())
    assert [row["arm"] for row in summary["rows"]] == arms
    assert len({round(row["loss"], 6) for row in summary["rows"]}) == len(arms)
    assert list(summary["offsets_told"]) == ["split_frequencies", "split_heads", "mean_angle", "first_view"]
    assert summary["pretraining"]["stamp"]["settings"]["steps"] == 2
    assert "| `split_heads` |" in (tmp_path / "rotary_views.md").read_text()
    monkeypatch.setattr(bench, "train_once", None)
    bench.main(options)
    assert "Blind tokenizer" in capsys.readouterr().out
