"""Recomputing running statistics of batch norms."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import default_data_collator

from hf_any3d import GuidedAdapterConfig
from hf_any3d.modeling.encoders import freeze
from hf_any3d.training import norm_statistics
from hf_any3d.training.norm_statistics import refresh_norm_statistics
from tests.tiny_encoders import clouds
from tests.tiny_text_towers import adapted_zero_shot_model


def trainer_of(model, rows, batch_size):
    arguments = SimpleNamespace(train_batch_size=batch_size, device=torch.device("cpu"), seed=0)
    return SimpleNamespace(model=model, train_dataset=rows, args=arguments, data_collator=default_data_collator)


class Scaled(nn.Module):
    """A batch norm over rows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, rows):
        return self.norm(rows)


def test_statistics_are_those_of_all_rows():
    rows = [{"rows": row} for row in 5 + 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))]
    model = Scaled().eval()
    assert refresh_norm_statistics(trainer_of(model, rows, 16)) == 1
    every = torch.stack([row["rows"] for row in rows])
    torch.testing.assert_close(model.norm.running_mean, every.mean(dim=0))
    torch.testing.assert_close(model.norm.running_var, every.var(dim=0), rtol=0.1, atol=0)
    assert model.norm.momentum == 0.1 and not model.training


def test_norms_of_a_frozen_encoder_are_unchanged():
    model = Scaled()
    freeze(model.norm)
    assert refresh_norm_statistics(trainer_of(model, [{"rows": torch.ones(3)}], 1)) == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}


def test_refreshing_one_adapter_leaves_the_others_and_the_originals():
    model = adapted_zero_shot_model()
    model.add_adapter("b", GuidedAdapterConfig(r=4, init_weights=False))
    rows = [{"points": cloud} for cloud in clouds(8)]
    refresh_norm_statistics(trainer_of(model, rows, 4))
    before = statistics(model)
    model.set_adapter("b")
    count = refresh_norm_statistics(trainer_of(model, rows, 4))
    after = statistics(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    measured = {name for name in before if ".b." in name}
    assert moved == measured and count == len(measured) / 2
    assert any("original_module" in name for name in before) and any(".default." in name for name in before)


def test_failed_pass_changes_no_norm():
    model = Scaled()
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        refresh_norm_statistics(trainer_of(model, [{"rows": torch.ones(3)}], 1))
    assert model.norm.momentum == 0.1 and torch.equal(model.norm.running_mean, torch.zeros(3))


class Noted(Scaled):
    """Keeps the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, rows):
        self.seen.append(rows[:, 0].tolist())
        return super().forward(rows)


def batches_of(rank=0, processes=1, **changes) -> list[list[float]]:
    trainer = trainer_of(Noted(), [{"rows": torch.full((3,), float(number))} for number in range(13)], 3)
    vars(trainer.args).update({"world_size": processes, "process_index": rank, "join_batches": True} | changes)
    assert refresh_norm_statistics(trainer) == 1 and trainer.model.training
    return trainer.model.seen


def test_processes_take_their_parts_of_the_same_batches(monkeypatch):
    joined = []
    monkeypatch.setattr(norm_statistics, "joining_norms", lambda model, join: joined.append(join) or nullcontext())
    first, second = (batches_of(rank, 2) for rank in (0, 1))
    assert [len(batch) for batch in first] == [3, 3] and joined == [True, True]
    both = [number for parts in zip(first, second, strict=True) for part in parts for number in part]
    assert len({*both}) == 12 and both != sorted(both)
    # Without joined statistics each process makes the pass of one.
    assert batches_of(1, 2, join_batches=False) == batches_of() and joined[2:] == [False, False]
    assert [len(batch) for batch in batches_of()] == [3] * 4 and batches_of(seed=1) != batches_of()


def test_models_without_statistics_are_left_alone():
    model = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    assert refresh_norm_statistics(trainer_of(model, [], 2)) == 0
