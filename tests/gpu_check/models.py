"""Sections on models: stored runs, waits in training steps, precisions, training steps, several devices."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

from hf_any3d.conversions.uni3d.convert import LOGIT_SCALE, convert_uni3d_encoder
from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.modeling.point_ops import farthest_point_sample, neighbor_table, serialize
from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3Config, PointTransformerV3Model
from hf_any3d.modeling.uni3d import Uni3DConfig, Uni3DModel
from studies.speed.kernels import STEPS
from studies.speed.point_transformer_v3 import room
from tests.common.models import CASES, Case
from tests.common.refusals import refusal_of
from tests.gpu_check.run import Row, Run, relative_error
from tests.modeling.aligned_case import AlignedCase, stages_of
from tests.modeling.ptv3_case import Ptv3Case
from tests.reference.fill import points as stored_points

REFERENCE = Path(__file__).parents[1] / "reference"
# A mask of patches must be counted, if the caller gives it; and transformers looks for padding in attention masks.
READ_ON_PURPOSE = ("mask", "attention_mask")
STILL_TRAINS = "ActForPointCloudClassification"


def reference(run: Run) -> None:
    """Repeat stored runs of the released programs."""
    case = json.loads((REFERENCE / "any2point_fps.json").read_text())
    cloud = (torch.from_numpy(stored_points(**case["input"])) * 0.1).to(run.device)
    for output, limit in (("index", 1e-3), ("index_every_point", None)):

        def sample(output: str = output, limit: float | None = limit) -> Row:
            index = farthest_point_sample(cloud, case["count"], min_squared_norm=limit, tie_rule="cuda")
            return {"ok": torch.equal(index.cpu(), load_file(REFERENCE / "any2point_fps.safetensors")[output].long())}

        run.check(f"samples of Any2Point, {output}", sample)
    run.check("orders and neighbors of Utonia", lambda: _orders(run.device))
    run.check("Uni3D, all stored tensors", lambda: _uni3d(run.device))


def _orders(device: torch.device) -> Row:
    case = Ptv3Case("ptv3_utonia")
    row: Row = {"ok": True}
    for number, spec in enumerate(case.manifest["stages"].values()):
        counts = torch.tensor(spec["points"])
        cloud = torch.arange(len(counts)).repeat_interleave(counts).to(device)
        grid = case.expected[f"s{number}.grid_coord"].long().to(device)
        order = serialize(grid, cloud, 2, case.arguments["order"], depth_of_batch=True).order
        table = neighbor_table(grid, cloud, 2)
        pairs = (table.dense(len(grid)) >= 0).sum(dim=1)
        row["ok"] &= torch.equal(order.cpu(), case.expected[f"s{number}.order"].long())
        row["ok"] &= pairs.tolist() == case.expected[f"s{number}.pairs"].tolist()
    return row


def _uni3d(device: torch.device) -> Row:
    case = AlignedCase("uni3d_base_reduced")
    state, sizes = convert_uni3d_encoder(case.original, case.manifest["trunk"]["heads"])
    model = Uni3DModel(Uni3DConfig(**sizes, num_groups=96, group_size=32, sampling_min_squared_norm=1e-3))
    model.load_state_dict({name: tensor for name, tensor in state.items() if name != LOGIT_SCALE}, strict=True)
    blocks = [int(key.removeprefix("block_")) for key in case.expected if key.startswith("block_")]
    found = stages_of(model.to(device).eval(), case.points.to(device), blocks)
    del found["patch_features"]  # the case has those before the last layer
    errors = {key: case.error(key, value.cpu()) for key, value in found.items() if key in case.expected}
    largest = max(errors.values())
    return {"ok": errors["centers"] == 0 and largest <= 2e-4, "tensors": len(errors), "error": largest}


def _chosen(run: Run) -> list[Case]:
    """All model classes; in small runs a few."""
    few = ("Any2PointForPointCloudClassification", STILL_TRAINS)
    return [case for case in CASES if not run.small or case.name in few]


def _moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _loss(case: Case, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    output = model(**inputs)
    return output.loss if case.labels else case.answer_of(output).float().square().mean()


def waits(run: Run) -> None:
    """Train every model with an error at whatever waits for the device, after the first steps."""
    for case in _chosen(run):

        def train(case: Case = case) -> Row:
            model = case.build().to(run.device).train()
            inputs = _moved(case.labeled() if case.labels else case.batch(), run.device)
            inputs = {name: value for name, value in inputs.items() if name not in READ_ON_PURPOSE}
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
            refusal = refusal_of("no waiting", case.name)
            for number in range(4):
                if number == 2 and run.on_gpu and refusal is None:
                    run.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                loss = _loss(case, model, inputs)
                if optimizer is not None:
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            return {} if refusal is None else {"note": f"waits, as documented: {refusal.reason}"}

        run.check(case.name, train)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def precision(run: Run) -> None:
    """Compare losses and gradients under bfloat16 autocast and with TF32 with those in full precision on the CPU."""
    for case in _chosen(run):

        def compare(case: Case = case) -> Row:
            model = case.still()
            inputs = case.labeled() if case.labels else case.batch()
            expected, slope = _step(case, model, inputs)
            model, inputs = model.to(run.device), _moved(inputs, run.device)
            ways = {"float32": (nullcontext(), 1e-3), "bf16": (torch.autocast(run.device.type, torch.bfloat16), 0.1)}
            if run.on_gpu:
                ways["tf32"] = _tf32(), 0.02
            row: Row = {"ok": True}
            for name, (context, tolerance) in ways.items():
                with context:
                    found, gradient = _step(case, model, inputs)
                row[f"{name} error"] = relative_error(found, expected)
                row["ok"] &= row[f"{name} error"] <= tolerance and bool(gradient.isfinite())
                if name == "float32":
                    row["gradient error"] = relative_error(gradient, slope)
                    row["ok"] &= row["gradient error"] <= 10 * tolerance
            return row

        run.check(case.name, compare)


def _step(case: Case, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the loss and the norm of all gradients, in evaluation: statistics of a batch would not repeat."""
    model.zero_grad()
    loss = _loss(case, model.eval(), inputs)
    if loss.requires_grad:
        loss.backward()
    gradients = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.stack(gradients).norm() if gradients else loss.detach()


def steps(run: Run) -> None:
    """Time training steps at released sizes with fused and plain operations, and beside the bare frozen layers."""
    # First, as it is the largest, and the time is spent in order.
    run.check("point transformer v3, 100,000 points", lambda: _ptv3(run))
    for name in ("any2point", "default model"):
        run.check(f"{name}, bare frozen layers", lambda name=name: _bare(run, STEPS[name]))
    for name, make in STEPS.items():
        for dtype in (None, torch.bfloat16) if run.on_gpu else (None,):

            def measure(make: Callable = make, dtype: torch.dtype | None = dtype) -> Row:
                torch.manual_seed(0)
                with run.device:  # weights are drawn there, which takes no time
                    model, inputs, points = make(run.small)
                batch = 2 if run.small else 32
                cloud = torch.rand(batch, points, getattr(model.config, "in_channels", 3)) - 0.5
                if "labels" in inputs:
                    inputs["labels"] = torch.arange(batch) % model.config.num_labels
                inputs = _moved(inputs | {"points": cloud}, run.device)
                return _timed(run, model.to(run.device), inputs, batch, dtype)

            run.check(f"{name} {'bf16' if dtype else 'float32'}", measure)


def _timed(
    run: Run, model: nn.Module, inputs: dict[str, Any], batch: int, dtype: torch.dtype | None, answer: str = "loss"
) -> Row:
    def step() -> None:
        with torch.autocast(run.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(**inputs)
        (output[answer].float().mean()).backward()
        model.zero_grad(set_to_none=True)

    row: Row = {}
    for column, setting in (("ours", "auto"), ("plain", "torch")):
        before = set_kernels(setting)
        try:
            row |= _measured(run, step, column)
        finally:
            set_kernels(before)
    return row | {"clouds/s": 1000 * batch / row["ms ours"], "kernels": run.kernels(step)}


def _measured(run: Run, step: Callable[[], None], column: str) -> Row:
    milliseconds, peak = run.milliseconds(step, 3), run.peak_bytes(step)
    return {f"ms {column}": milliseconds, f"MB {column}": None if peak is None else peak / 1e6}


def _bare(run: Run, make: Callable) -> Row:
    """Time the frozen layers alone on as many tokens as the model's."""
    with torch.device("meta"):
        model, _, _ = make(run.small)
    base = model.get_base_model().any2point
    # A new one: the model's own has adapters.
    encoder = AutoModel.from_config(base.config.encoder_config).to(run.device).requires_grad_(False).eval()
    layers, config = list(base.family.layers_of(encoder)), base.config
    batch, tokens = 2 if run.small else 32, config.num_tokens + 1
    shape = (tokens, batch) if config.released.attention_axis == "batch" else (batch, tokens)
    sequence = torch.randn(*shape, encoder.config.hidden_size, device=run.device, requires_grad=True)

    def step() -> None:
        hidden_states = sequence
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        hidden_states.sum().backward()

    row = _measured(run, step, "ours")
    return row | {"clouds/s": 1000 * batch / row["ms ours"], "kernels": run.kernels(step)}


def _ptv3(run: Run) -> Row:
    sizes = dict(depths=(1, 1), hidden_sizes=(16, 32), num_attention_heads=(2, 2), patch_sizes=(64, 64))
    settings = sizes | {"pooling_strides": (2,)} if run.small else PRESETS["concerto_small"]
    with run.device:
        model = PointTransformerV3Model(PointTransformerV3Config(**settings)).train()
    points = room(500 if run.small else 100_000)[:, : model.config.in_channels]
    return _timed(run, model, {"points": points[None].to(run.device)}, 1, None, "last_hidden_state")


def devices(run: Run) -> None:
    """Compare gradients of a batch that is split among all devices with those of the whole batch on one."""
    world = torch.cuda.device_count() if run.on_gpu else 1
    with tempfile.TemporaryDirectory() as folder:

        def compare() -> Row:
            if world == 1:
                _rank(0, 1, run.device.type, folder)
            else:
                torch.multiprocessing.spawn(_rank, (world, run.device.type, folder), world)
            case, model, inputs = _still(2 * world)
            model.to(run.device)
            _loss(case, model, _moved(inputs, run.device)).backward()
            found = torch.load(Path(folder, "gradients"), weights_only=True)
            whole = {
                name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
            }
            largest = max(float(gradient.abs().max()) for gradient in whole.values())
            differences = [float((found[name] - whole[name].cpu()).abs().max()) for name in whole]
            error = max(differences) / largest
            return {"ok": found.keys() == whole.keys() and error <= 1e-4, "devices": world, "error": error}

        run.check(f"DDP on {world} {'device' if world == 1 else 'devices'}", compare)


def _still(rows: int) -> tuple[Case, nn.Module, dict[str, Any]]:
    case = next(case for case in CASES if case.name == STILL_TRAINS)
    torch.manual_seed(0)
    # In evaluation: statistics of half a batch are not those of the whole.
    return case, case.still().eval(), case.labeled(rows)


def _rank(rank: int, world: int, kind: str, folder: str) -> None:
    """Compute the gradients of two clouds in one of the processes; the first one stores them."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    try:
        case, model, inputs = _still(2 * world)
        model = DistributedDataParallel(model.to(device))
        own = slice(2 * rank, 2 * rank + 2)
        _loss(case, model, _moved({name: value[own] for name, value in inputs.items()}, device)).backward()
        if rank == 0:
            gradients = {n: p.grad.cpu() for n, p in model.module.named_parameters() if p.grad is not None}
            torch.save(gradients, Path(folder, "gradients"))
    finally:
        torch.distributed.destroy_process_group()
