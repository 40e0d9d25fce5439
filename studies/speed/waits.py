"""Measure what people wait for: commands from a shell, and models at released sizes, with their matrix products.

    python -m studies.speed.waits

One thread; models have random weights. Seconds are those of the processor. The products are the operators that
multiply matrices (linear layers, attention, convolutions), by torch's profiler; of commands, imports are what `import
hf_any3d` takes in a process of its own. SpatialLM has the size of its 0.5 B release and answers with 16 tokens.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "mkldnn_linear", "mkldnn_convolution", "thnn_conv2d")
PRODUCTS += ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math")


def shell(*words: str) -> float:
    """Return the processor seconds of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands() -> list[tuple[str, str, str]]:
    """Measure commands; the least of three calls."""
    program = ["-c", "import sys; from hf_any3d_command import main; sys.argv[0] = 'hf-any3d'; main()"]
    chair = str(Path(__file__).parents[2] / "examples" / "data" / "chair.ply")

    def least(*words: str) -> float:
        return min(shell(*words) for _ in range(3))

    imports = {name: least("-c", f"import {name}") for name in ("torch", "transformers.modeling_utils", "hf_any3d")}
    known = ", ".join(f"{name.partition('.')[0]} {seconds:.1f}" for name, seconds in imports.items())
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        rng = np.random.default_rng(0)
        for label, stretch in (("flat", (1, 0.1, 1)), ("long", (0.1, 1, 0.1))):
            (scans / label).mkdir(parents=True)
            for number in range(10):
                np.save(scans / label / f"{number}.npy", rng.normal(size=(1024, 3)) * stretch)
        rows = [("`hf-any3d predict chair.ply`", least(*program, "predict", chair))]
        train = least(*program, "train", str(scans), "--output_dir", f"{folder}/out")
        rows.append(("`hf-any3d train scans`, 20 files", train))
    return [(name, f"{seconds:.1f}", f"imports {imports['hf_any3d']:.1f} ({known})") for name, seconds in rows]


def products(work: Callable[[], Any], rounds: int = 2) -> tuple[float, float]:
    """Return the least processor seconds of a call, and the share of matrix products in another one."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    events = record.key_averages()
    own = sum(event.self_cpu_time_total for event in events if event.key.removeprefix("aten::") in PRODUCTS)
    return min(seconds), own / sum(event.self_cpu_time_total for event in events)


def ptv3() -> Callable[[], Any]:
    """Encode a room of 100,000 voxels with Concerto's small size."""
    from studies.speed.point_transformer_v3 import build, room

    model = build("concerto_small", "room").eval()
    points = room(100_000)[None, :, : model.config.in_channels]
    return lambda: model(points)


def boxes() -> Callable[[], Any]:
    """Find boxes among 40,000 points with 3DETR-m."""
    from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
    from studies.speed.detr3d import scene

    model = Detr3DForPointCloudObjectDetection(Detr3DConfig()).eval()
    points = scene(40_000)[0]
    return lambda: model(points)


def segments() -> Callable[[], Any]:
    """Compute features of each of a million points of rooms, column by column."""
    from studies.speed.large_scene import measure

    return lambda: measure(1_000_000, 5.0, 0.5)


def layout() -> Callable[[], Any]:
    """Read a scan of 60,000 points and answer with 16 tokens."""
    from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration
    from studies.speed.spatiallm import prompt, scan

    model = SpatialLMForConditionalGeneration(SpatialLMConfig()).eval()
    clouds = scan(60_000)
    ids = prompt(len(model.get_point_features(**clouds)[0]), model.config)
    lengths = {"min_new_tokens": 16, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **clouds, **lengths)


MODELS: dict[str, Callable[[], Callable[[], Any]]] = {
    "Point Transformer V3, 100,000 voxels": ptv3,
    "3DETR-m, 40,000 points": boxes,
    "SpatialLM's answer": layout,
    "features of a million points": segments,
}


def main() -> None:
    """Measure all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["commands", *MODELS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | processor seconds | of these |\n|---|---|---|")
    if "commands" in options.only:
        for row in commands():
            print("| " + " | ".join(row) + " |", flush=True)
    for name, build in MODELS.items():
        if name in options.only:
            torch.manual_seed(0)
            with torch.inference_mode():
                seconds, share = products(build(), 1 if "million" in name else 2)
            print(f"| {name} | {seconds:.1f} | products {100 * share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
