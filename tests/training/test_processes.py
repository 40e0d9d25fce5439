"""What processes of a training exchange, and what they refuse; test_two_processes.py starts some."""

import itertools
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.kernels.joined_batches import JoinedBatchNorm
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.processes import EvenlySplit, joining_norms, keep_out_of_ddp
from hf_any3d.training.trainer import PointTrainer
from tests.common.models import case_of
from tests.errors import raises

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("drops_last", [False, True])
def test_processes_together_have_each_row_of_an_epoch_once(processes, drops_last):
    for rows in range(1, 30):
        for size in (1, 2, 3, 5):
            batches = BatchSampler(range(rows), size, drops_last)
            shares = [list(EvenlySplit(batches, processes, number)) for number in range(processes)]
            # All take equally many steps, which are those of one process with larger batches.
            by_step = list(zip(*shares, strict=True))
            steps = [list(itertools.chain(*step)) for step in by_step]
            expected = list(BatchSampler(range(rows), size * processes, drops_last))
            if expected and len(expected[-1]) < processes:
                assert len(steps[-1]) == processes and {*expected[-1]} <= {*steps[-1]}
                expected[-1] = steps[-1]
            assert steps == expected
            for step in by_step:
                assert min(map(len, step)) > 0 and max(map(len, step)) - min(map(len, step)) <= 1
            assert len(EvenlySplit(batches, processes, 0)) == len(steps)


def test_a_process_that_does_not_save_leaves_checkpoints_to_the_one_that_does(tmp_path, monkeypatch):
    model = case_of(Any2PointForPointCloudClassification).still()
    trainer = PointTrainer(model, PointTrainingArguments(str(tmp_path / "run"), eval_strategy="no", report_to="none"))
    monkeypatch.setattr(PointTrainingArguments, "should_save", False)
    trainer.save_model(str(tmp_path / "run" / "checkpoint-1"), _internal_call=True)
    assert not (tmp_path / "run" / "checkpoint-1").exists()


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("join", [False, True])
def test_ddp_neither_averages_nor_sends_what_is_frozen(one_process, join):
    model = get_peft_model(case_of(Any2PointForPointCloudClassification).still(), GuidedAdapterConfig())
    with joining_norms(model, join):
        names = keep_out_of_ddp(model)
        wrapped = DistributedDataParallel(model)
    trained = {id(own) for own in model.parameters() if own.requires_grad}
    assert {id(own) for own in wrapped._module_parameters} == trained and trained
    sent = [buffer for name, buffer in model.named_buffers() if name not in names]
    assert [id(buffer) for buffer in wrapped.modules_buffers] == [id(buffer) for buffer in sent]
    assert bool(sent) is not join and all("norm" in name for name, _ in model.named_buffers() if name not in names)
    assert any("encoder" in name for name in names)


def test_processes_with_other_frozen_weights_are_refused(one_process, monkeypatch):
    model = nn.Linear(2, 2).requires_grad_(False)
    monkeypatch.setattr(distributed, "broadcast", lambda values, src: values.add_(1))
    with pytest.raises(ValueError, match=r"weight differs between the processes"):
        keep_out_of_ddp(model)


@pytest.mark.parametrize(("shape", "momentum"), [((6, 4), 0.1), ((3, 4, 5), None)])
def test_joined_norms_of_one_process_are_batch_norms(one_process, shape, momentum):
    torch.manual_seed(0)
    plain, joined = nn.BatchNorm1d(4, momentum=momentum), nn.BatchNorm1d(4, momentum=momentum)
    nn.init.normal_(plain.weight)
    joined.load_state_dict(plain.state_dict())
    results = []
    for norm in (plain, joined):
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with joining_norms(norm, norm is joined):
            assert isinstance(norm, JoinedBatchNorm) is (norm is joined)
            for _ in range(2):
                output = norm(2 + 3 * rows)
        (output * torch.arange(4.0).view(-1, *[1] * (len(shape) - 2))).square().sum().backward()
        results.append([output, rows.grad, norm.weight.grad, norm.bias.grad, *norm.buffers(), norm.eval()(rows)])
        assert type(norm) is nn.BatchNorm1d
    for own, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "recipes" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_configurations_start_several_processes(path):
    config = load_config_from_file(str(path))
    # Others would start one process in silence.
    assert config.distributed_type in (DistributedType.MULTI_GPU, DistributedType.FSDP)
    assert config.num_processes % config.num_machines == 0 and config.num_processes > 1
    if config.distributed_type is DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2 and not config.use_cpu
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        assert config.fsdp_config["fsdp_offload_params"] is (path.stem == "fsdp2_offload")


def test_launchers_that_cannot_start_processes_again_are_refused(monkeypatch, tmp_path):
    launched = {"WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with raises(ValueError, naming="--max_restarts"):
        PointTrainingArguments(output_dir=str(tmp_path), use_cpu=True)  # the processes have not met yet
