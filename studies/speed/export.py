"""Time exported files and PyTorch in eager mode on a model like the quickstart's, and compare their predictions.

    python -m studies.speed.export
    python -m studies.speed.export --model outputs/quickstart/model --output export.json

All take turns in one process, on one thread. Times are processor times of this process, which depend little on other
work on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from examples.quickstart import ADAPTER, MODEL
from hf_any3d import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
)
from hf_any3d.export import FORMATS, export_file
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns

CLASSES = 18
POINTS = 1024
BATCHES = (1, 16)
Side = Callable[[Tensor], Tensor]


def build_quickstart_like() -> nn.Module:
    """Build the quickstart's model with random weights, without downloads."""
    size = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 8}
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(num_hidden_layers=MODEL["num_layers"], **size))
    config = Any2PointConfig(encoder_config=encoder.config, num_labels=CLASSES, **LIGHT)
    model = Any2PointForPointCloudClassification(config, encoder)
    return get_peft_model(model, GuidedAdapterConfig(**ADAPTER)).eval()


def milliseconds(sides: dict[str, Side], points: Tensor, repeats: int) -> dict[str, float]:
    """Measure median processor milliseconds per cloud."""
    spent = timed_in_turns({name: lambda side=side: side(points) for name, side in sides.items()}, repeats)
    return {name: 1000 * statistics.median(one.cpu for one in times) / len(points) for name, times in spent.items()}


def agreement(eager: Side, other: Side, clouds: int) -> dict[str, float]:
    """Compare logits and predicted labels on random clouds of many sizes."""
    generator = torch.Generator().manual_seed(1)
    worst, labels = 0.0, 0
    for number in range(clouds):
        points = torch.rand(1, 300 + 7 * number, 3, generator=generator) * 2 - 1
        expected, found = eager(points), other(points)
        worst = max(worst, (expected - found).abs().max().item())
        labels += int(expected.argmax() != found.argmax())
    return {"clouds": clouds, "worst_difference": worst, "labels_that_differ": labels}


def measure(model: nn.Module, formats: list[str], repeats: int, clouds: int) -> dict:
    """Export, time and compare."""

    def eager(points: Tensor) -> Tensor:
        with torch.no_grad():
            return model(points=points).logits

    sides: dict[str, Side] = {"eager": eager}
    result: dict = {"formats": {}, "ms_per_cloud": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in formats:
            begin = time.process_time()
            made = export_file(model, Path(folder) / f"model.{name}", name)
            spent = time.process_time() - begin
            sides[name] = FORMATS[name].open(made.path)
            result["formats"][name] = {"MB": made.bytes / 1e6, "export_cpu_seconds": spent}
            result["formats"][name] |= agreement(eager, sides[name], clouds)
            if (worst := result["formats"][name]["worst_difference"]) > 1e-3:
                raise SystemExit(f"{name}: logits differ from the model's by {worst:.1e}; allowed is 1e-3")
        generator = torch.Generator().manual_seed(0)
        for batch in BATCHES:
            points = torch.rand(batch, POINTS, 3, generator=generator) * 2 - 1
            result["ms_per_cloud"][batch] = milliseconds(sides, points, repeats)
    return result


def table(result: dict) -> str:
    """Format as Markdown, a row for each side."""
    heads = " | ".join(f"batch {batch}, ms a cloud" for batch in BATCHES)
    lines = [f"| runs by | {heads} | file, MB | export, CPU s | worst difference | labels that differ |"]
    lines.append("|---" * (len(BATCHES) + 5) + "|")
    for name in result["ms_per_cloud"][BATCHES[0]]:
        times = " | ".join(f"{result['ms_per_cloud'][batch][name]:.2f}" for batch in BATCHES)
        facts = result["formats"].get(name)
        rest = (
            "– | – | – | –"
            if facts is None
            else f"{facts['MB']:.1f} | {facts['export_cpu_seconds']:.0f} | {facts['worst_difference']:.1e} | "
            f"{facts['labels_that_differ']} of {facts['clouds']}"
        )
        lines.append(f"| {name} | {times} | {rest} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Time a classifier and its exported programs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="saved classifier; by default one like the quickstart's")
    parser.add_argument("--formats", nargs="+", choices=sorted(FORMATS), default=sorted(FORMATS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--clouds", type=int, default=200, help="random clouds for comparing predictions")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.model is None:
        model = build_quickstart_like()
    else:
        model = AutoModelForPointCloudClassification.from_pretrained(chosen.model)
    result = measure(model, chosen.formats, chosen.repeats, chosen.clouds)
    print(table(result))
    if chosen.output is not None:
        write_json(chosen.output, result)


if __name__ == "__main__":
    main()
