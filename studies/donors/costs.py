"""Costs of a training step around each donor, in a process of its own, so that its memory is its own."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoConfig

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig, load_point_dataset
from studies.donors import donors_folder
from studies.donors.packages import DONORS

BATCH, POINTS, STEPS = 16, 1024, 5
"""Clouds of a step and points of a cloud, as `hf-any3d train` has them; steps that are measured."""
CUTS = (2, 4)
"""Numbers of first layers that are used, besides all."""


def measure(folder: Path, num_layers: int | None) -> dict[str, float]:
    """Train some steps with one thread, and return CPU seconds of a step, MB of memory and trained parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = load_point_dataset("shapes", split="train").with_format("torch")[: BATCH * (STEPS + 1)]
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(folder, num_layers=num_layers, num_labels=18)
    model = get_peft_model(model, GuidedAdapterConfig.light()).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, spent = torch.optim.AdamW(trained, lr=1e-3), []
    for step in range(STEPS + 1):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        start = time.process_time()
        model(points=rows["points"][batch, :POINTS], labels=rows["label"][batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.process_time() - start)
    layers = model.get_base_model().config.encoder_config.num_hidden_layers
    # Not `ru_maxrss`, which begins with the memory of the process that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    # The first step also allocates.
    seconds, count = sum(spent[1:]) / STEPS, sum(parameter.numel() for parameter in trained)
    return {"layers": layers, "seconds": seconds, "memory": int(peak[1]) / 1024 if peak else 0.0, "trained": count}


def cost_table() -> str:
    """Measure every donor with its first layers and whole, and tabulate it."""
    rows = len(load_point_dataset("shapes", split="train"))
    lines = [
        "| donor | layers | CPU seconds of a step | of an epoch | of 36 epochs, minutes | memory, MB | trained |",
        "|---" * 7 + "|",
    ]
    for name in DONORS:
        depth = AutoConfig.from_pretrained(donors_folder() / name).num_hidden_layers
        for num_layers in (*(count for count in CUTS if count < depth), None):
            command = [sys.executable, "-m", "studies.donors.costs", name, json.dumps(num_layers)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            epoch = found["seconds"] * (rows // BATCH)
            figures = f"{found['seconds']:.2f} | {epoch:.0f} | {36 * epoch / 60:.0f} | {found['memory']:.0f}"
            whole = " (all)" if num_layers is None else ""
            lines.append(f"| {name} | {found['layers']}{whole} | {figures} | {found['trained']:,} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure one donor: its name, and the number of layers as JSON."""
    name, layers = sys.argv[1:]
    print(json.dumps(measure(donors_folder() / name, json.loads(layers))))


if __name__ == "__main__":
    main()
