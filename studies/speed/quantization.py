"""Time, memory and accuracy of quantized models on a CPU: a chat model, an encoder, the packaged classifier.

    python -m studies.speed.quantization --output quantization.parquet

The chat model has Phi-2's width and few layers, a small vocabulary and the released point encoder and Q-Former; it and
the encoder, Uni3D-base, have random weights, so only times and memory are measured with them. The accuracy is that of
the packaged classifier on the test split of the embedded shapes. Each form of each model is opened in a process of its
own, one thread; times are processor times, medians over rounds. Memory is above that of the process before the model
is opened, at its peak; the file of float32 weights, which is mapped, is a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from hf_any3d import AutoModelForPointCloudClassification, PointCloudProcessor, load_point_dataset
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.uni3d import Uni3DConfig, Uni3DForPointCloudClassification
from hf_any3d.pipelines import default_model
from studies.speed._measure import held_tensors, timed
from studies.tables import write_table

MODELS = ("chat", "encoder", "classifier")
READ, GENERATED, CLOUDS = 96, 16, 4


def _torchao() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "float32": lambda: {"dtype": torch.float32},
    "bfloat16": lambda: {"dtype": torch.bfloat16},
    "torchao, float32": lambda: {"dtype": torch.float32, "quantization_config": _torchao()},
    "torchao, bfloat16": lambda: {"dtype": torch.bfloat16, "quantization_config": _torchao()},
    "bitsandbytes 8 bit, float32": lambda: {
        "dtype": torch.float32,
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    },
    "bitsandbytes 4 bit (nf4), bfloat16": lambda: {
        "dtype": torch.bfloat16,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
    },
    "quantize_dynamic, float32": lambda: {"dtype": torch.float32},
}
"""Arguments of `from_pretrained`; the last is quantized after it is opened."""


def build(model: str, layers: int) -> PreTrainedModel:
    """Build one of `MODELS` with random weights; `layers` is for the chat model's language model."""
    torch.manual_seed(0)
    if model == "encoder":
        return Uni3DForPointCloudClassification(Uni3DConfig(num_labels=40)).eval()
    sizes = {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32, "vocab_size": 8192}
    text = {"model_type": "normed_phi", "num_hidden_layers": layers, **sizes, "bos_token_id": 1, "eos_token_id": 1}
    config = MiniGPT3DConfig(text_config=text, text_lora=None, qformer_lora=None, point_token_id=8191)
    return MiniGPT3DForConditionalGeneration(config).eval()


def open_form(model: str, folder: str, form: str) -> PreTrainedModel:
    """Open a saved model in one of `FORMS`."""
    kinds = {"chat": MiniGPT3DForConditionalGeneration, "encoder": Uni3DForPointCloudClassification}
    opened = kinds.get(model, AutoModelForPointCloudClassification).from_pretrained(folder, **FORMS[form]())
    if form.startswith("quantize_dynamic"):
        opened = torch.ao.quantization.quantize_dynamic(opened, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return opened


def resident(which: str) -> float:
    """Return the MB of memory that this process holds ("VmRSS") or held at most ("VmHWM"), mapped weights included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1.024e-3 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights, quantized ones with their scales."""
    tensors = [*model.parameters(), *model.buffers()]
    count = sum(part.nbytes for tensor in tensors for part in held_tensors(tensor))
    packed = [layer.weight() for layer in model.modules() if isinstance(layer, torch.ao.nn.quantized.dynamic.Linear)]
    return count + sum(weight.numel() * weight.element_size() for weight in packed)


@torch.no_grad()
def measure_chat(model: PreTrainedModel, rounds: int) -> dict[str, Any]:
    """Measure tokens read and generated per processor second of an answer about a cloud that is encoded before."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    features = model.get_point_features(torch.rand(1, 2048, 6, generator=generator))
    ids = torch.randint(2, 8000, (1, READ), generator=generator)
    ids[:, 4 : 4 + config.num_query_tokens] = config.point_token_id
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "point_features": features}

    def answer(tokens: int) -> float:
        return timed(
            lambda: model.generate(**given, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
        ).cpu

    answer(2)  # warms up
    reads = [answer(1) for _ in range(rounds)]
    both = [answer(1 + GENERATED) for _ in range(rounds)]
    read = statistics.median(reads)
    return {"read_per_s": READ / read, "generated_per_s": GENERATED / (statistics.median(both) - read)}


@torch.no_grad()
def measure_encoder(model: PreTrainedModel, rounds: int) -> dict[str, Any]:
    """Measure clouds per processor second in a batch."""
    points = torch.rand(CLOUDS, 2048, 6, generator=torch.Generator().manual_seed(0))
    model(points=points[:1])  # warms up
    return {"clouds_per_s": CLOUDS / statistics.median(timed(lambda: model(points=points)).cpu for _ in range(rounds))}


@torch.no_grad()
def measure_classifier(model: PreTrainedModel, rounds: int) -> dict[str, Any]:
    """Measure the accuracy of the packaged classifier, and labels that are other than in float32, one cloud a call."""
    del rounds
    data = load_point_dataset("shapes")["test"]
    names = data.features["label"].names
    processor = PointCloudProcessor.from_pretrained(default_model())
    clouds = [processor(row["points"], return_tensors="pt")["points"] for row in data]
    full = AutoModelForPointCloudClassification.from_pretrained(default_model())
    found, expected = (
        [each.config.id2label[int(each(points=cloud).logits.argmax())] for cloud in clouds] for each in (model, full)
    )
    labels = [names[row["label"]] for row in data]
    accuracy = sum(one == label for one, label in zip(found, labels, strict=True)) / len(labels)
    other = sum(one != label for one, label in zip(found, expected, strict=True))
    return {"accuracy": accuracy, "other_labels": other, "clouds": len(labels)}


def measure(model: str, folder: str, form: str, rounds: int) -> dict[str, Any]:
    """Open a form of a model in this process, and measure it."""
    before = resident("VmRSS")
    begin = time.process_time()
    opened = open_form(model, folder, form)
    row: dict[str, Any] = {"model": model, "form": form, "open_cpu_s": time.process_time() - begin}
    row |= {"chat": measure_chat, "encoder": measure_encoder, "classifier": measure_classifier}[model](opened, rounds)
    if model == "classifier":  # too small, and beside a full one
        return row
    return row | {"weights_MB": weight_bytes(opened) / 1e6, "peak_MB": resident("VmHWM") - before}


def table(rows: list[dict[str, Any]]) -> str:
    """Format as Markdown, a table for each model."""
    columns = {
        "read_per_s": ("tokens read / s", ".0f"),
        "generated_per_s": ("tokens generated / s", ".1f"),
        "clouds_per_s": ("clouds / s", ".2f"),
        "accuracy": ("accuracy", ".3f"),
        "other_labels": ("other labels than float32", "d"),
        "weights_MB": ("weights, MB", ".0f"),
        "peak_MB": ("peak, MB", ".0f"),
    }
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        shown = {key: value for key, value in columns.items() if key in own[0]}
        heads = " | ".join(title for title, _ in shown.values())
        lines += ["", f"| {model} | {heads} |", "|---" * (len(shown) + 1) + "|"]
        for row in own:
            figures = " | ".join(f"{row[key]:{how}}" for key, (_, how) in shown.items())
            lines.append(f"| {row['form']} | {figures} |")
    return "\n".join(lines[1:])


def all_rows(models: list[str], forms: list[str], layers: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every form of the models, each in a new process."""
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            place = default_model() if model == "classifier" else folder
            if model != "classifier":
                build(model, layers).save_pretrained(folder)
            for form in forms:
                program = [sys.executable, "-m", "studies.speed.quantization", "--one", model, place, form]
                done = subprocess.run([*program, "--rounds", str(rounds)], check=True, capture_output=True, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as a Parquet table")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if chosen.one:
        print(json.dumps(measure(*chosen.one, chosen.rounds)))
        return
    rows = all_rows(chosen.models, chosen.forms, chosen.layers, chosen.rounds)
    print(table(rows))
    if chosen.output is not None:
        about = {"layers": chosen.layers, "rounds": chosen.rounds, "torch": torch.__version__}
        write_table(chosen.output, about | {"load": os.getloadavg()[0], "runs": rows})


if __name__ == "__main__":
    main()
