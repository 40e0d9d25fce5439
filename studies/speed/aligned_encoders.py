"""Compare the time of OpenShape's, Uni3D's and PatchAlign3D's encoders at inference with that of their bare blocks.

    python -m studies.speed.aligned_encoders --output aligned_encoders.json
    python -m studies.speed.aligned_encoders --presets patchalign3d --points 2048

All run in float32, in turns in one process. Times are processor times of this process, which depend little on other
work on the machine. The bare blocks run on random tokens; the other rows are what comes before them: the centers, the
points of the patches, and the layers that turn each patch into a token.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from hf_any3d import (
    OpenShapeConfig,
    OpenShapeModel,
    PatchAlign3DConfig,
    PatchAlign3DModel,
    Uni3DConfig,
    Uni3DModel,
)
from hf_any3d.modeling.point_ops import farthest_point_sample
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns

PRESETS = {
    "openshape": (OpenShapeModel, OpenShapeConfig, {}),
    "patchalign3d": (PatchAlign3DModel, PatchAlign3DConfig, {}),
    "uni3d-base": (Uni3DModel, Uni3DConfig, {}),
    "uni3d-large": (
        Uni3DModel,
        Uni3DConfig,
        {"hidden_size": 1024, "intermediate_size": 2730, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
}
"""Model, config, and changes of its defaults."""


@torch.inference_mode()
def measure(preset: str, batch: int, points: int, repeats: int, **changes: Any) -> dict[str, Any]:
    """Measure the parts of an encoder.

    Args:
        preset: A key of `PRESETS`.
        batch: Clouds per batch.
        points: Points per cloud.
        repeats: Rounds of measurements.
        **changes: Further changes of the config.
    """
    torch.manual_seed(0)
    model_class, config_class, settings = PRESETS[preset]
    config = config_class(**settings, **changes)
    model = model_class(config).eval()
    clouds = torch.rand(batch, points, config.in_channels) - 0.5  # (batch, points, channels)
    xyz = clouds[..., :3].contiguous()
    patches = model.cut(clouds)
    tokens = torch.randn(batch, 1 + config.num_groups, config.hidden_size)
    steps = {
        "bare blocks": lambda: model.blocks(tokens),
        "whole encoder": lambda: model(clouds),
        "centers": lambda: farthest_point_sample(xyz, config.num_groups),
        "centers and patches": lambda: model.cut(clouds),
        "layers of the patches": lambda: model.embed(patches),
    }
    spent = timed_in_turns(steps, repeats)
    seconds = {name: statistics.median(one.cpu for one in times) for name, times in spent.items()}
    return {
        "preset": preset,
        "batch": batch,
        "points": points,
        "groups": config.num_groups,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": {
            name: {"ms_per_cloud": 1000 * each / batch, "times_bare": each / seconds["bare blocks"]}
            for name, each in seconds.items()
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Time the encoders and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = [measure(preset, options.batch, options.points, options.repeats) for preset in options.presets]
    for result in results:
        print(f"{result['preset']}, {result['points']:,} points, {result['groups']} patches, batch {result['batch']}")
        print("| inference | ms a cloud | times bare blocks |\n|---|---|---|")
        for name, row in result["rows"].items():
            print(f"| {name} | {row['ms_per_cloud']:.1f} | {row['times_bare']:.2f} |")
    if options.output:
        write_json(options.output, {"results": results})


if __name__ == "__main__":
    main()
