"""Time and memory of an Any2Point training step against the bare frozen layers on the same tokens, in one process.

    python examples/benchmarks/any2point_wrapper.py --encoder minilm --output wrapper.json

Both sides run forward and backward in float32 on sequences of the same length; gradients reach the tokens in both.
Saved bytes are what autograd keeps for the backward pass, parameters left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModel

from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.encoders import freeze

ENCODERS = {
    "minilm": dict(
        model_type="bert", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "clip-text": dict(
        model_type="clip_text_model",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        eos_token_id=2,
    ),
}


def saved_bytes(step: Callable[[], torch.Tensor], parameters: set[int]) -> int:
    """Bytes that autograd keeps between forward and backward, every storage counted once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
        total = sum(kept.values())
    loss.backward()
    return total


def median_seconds(step: Callable[[], torch.Tensor], repeats: int) -> float:
    """Median seconds of forward and backward."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure(encoder_name: str, batch: int, points: int, tokens: int, neighbors: int, repeats: int) -> dict:
    """Measure both sides and the tokenizer alone."""
    torch.manual_seed(0)
    settings = dict(ENCODERS[encoder_name])
    encoder = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), vocab_size=8, **settings))
    config = Any2PointConfig(
        encoder_config=encoder.config, num_labels=18, num_tokens=tokens, tokenizer_neighbors=neighbors
    )
    model = Any2PointForPointCloudClassification(config, freeze(encoder))
    base = model.any2point
    layers = list(base.family.layers_of(encoder))
    clouds = torch.rand(batch, points, 3) - 0.5  # (batch, points, 3)
    labels = torch.arange(batch) % 18
    sequence = torch.randn(batch, tokens + 1, encoder.config.hidden_size, requires_grad=True)

    def bare() -> torch.Tensor:
        hidden_states = sequence
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        return hidden_states.sum()

    frozen = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    rows = {"bare layers": (median_seconds(bare, repeats), saved_bytes(bare, frozen))}
    adapted = get_peft_model(model, GuidedAdapterConfig()).train()

    def tokenizer() -> torch.Tensor:
        return base.point_tokenizer(clouds).tokens.sum()

    def wrapped() -> torch.Tensor:
        return adapted(points=clouds, labels=labels).loss

    parameters = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    rows["tokenizer"] = (median_seconds(tokenizer, repeats), saved_bytes(tokenizer, parameters))
    rows["whole model"] = (median_seconds(wrapped, repeats), saved_bytes(wrapped, parameters))
    bare_seconds, bare_bytes = rows["bare layers"]
    return {
        "encoder": encoder_name,
        "batch": batch,
        "points": points,
        "tokens": tokens,
        "neighbors": neighbors,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": {
            name: {
                "ms_per_cloud": 1000 * seconds / batch,
                "saved_MB_per_cloud": kept / batch / 1e6,
                "times_bare_time": seconds / bare_seconds,
                "times_bare_memory": kept / bare_bytes,
            }
            for name, (seconds, kept) in rows.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="minilm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--neighbors", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(
        arguments.encoder,
        arguments.batch,
        arguments.points,
        arguments.tokens,
        arguments.neighbors,
        arguments.repeats,
    )
    print(f"{result['encoder']}, batch {result['batch']}, {result['tokens']} tokens, k = {result['neighbors']}")
    print("| forward + backward | ms a cloud | saved MB a cloud | times bare time | times bare memory |")
    print("|---|---|---|---|---|")
    for name, row in result["rows"].items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in row) + " |")
    if arguments.output:
        unfinished = arguments.output.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(result, indent=2) + "\n")
        unfinished.replace(arguments.output)


if __name__ == "__main__":
    main()
