"""Tokens of points in real encoders: norms, similarity, precision and memory.

    python -m studies.donors.point_tokens            # norms, similarity and differences of states
    python -m studies.donors.point_tokens --memory   # what autograd keeps of a step, without parameters
    python -m studies.donors.point_tokens --start    # does a decoder gain by its own start token as the class token?

The tokens are those of a new Any2Point model on embedded test shapes, without training. All layers of each donor run
on them, with the mask of our models, in which all tokens see each other, and once with the causal mask of a decoder.
Each takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, get_cosine_schedule_with_warmup

from hf_any3d import Any2PointForPointCloudClassification, load_point_dataset
from hf_any3d.modeling.encoders.positions import hidden_of
from hf_any3d.training.models import build_peft_config
from studies import earlier_recipe
from studies.donors import donors_folder
from studies.donors.any2point import Cell, Split, augmented, build as build_cell, load_sets

CLOUDS, POINTS = 16, 1024
BATCH, CUT, STEPS = 16, 512, 100
"""Of the trial of a start token: clouds of a step, points of a cloud, and steps."""
DONORS = ("minilm", "smollm2", "dinov2", "whisper")
QUERIES_AND_VALUES = {
    "minilm": ["query", "value"],
    "smollm2": ["q_proj", "v_proj"],
    "dinov2": ["query", "value"],
    "whisper": ["q_proj", "v_proj"],
}
"""Names of the layers that project to queries and values."""


def build(name: str) -> Any2PointForPointCloudClassification:
    """Build the model around all layers of a donor, without training."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_labels": 18, "num_tokens": 32}
    if name == "smollm2":
        settings["token_scale"] = None  # rotary positions have no spread that tokens could be scaled to
    return Any2PointForPointCloudClassification.from_encoder_pretrained(donors_folder() / name, **settings)


def run_layers(encoder: PreTrainedModel, layers: nn.ModuleList, states: Tensor, causal: bool) -> list[Tensor]:
    """Run the layers on tokens `(clouds, tokens, hidden)` in their order, and return what each makes of them."""
    arguments: dict[str, Any] = {}
    if hasattr(encoder, "rotary_emb"):
        places = torch.arange(states.shape[1])[None]
        arguments["position_embeddings"] = encoder.rotary_emb(states, places)
    mask = states.new_zeros(1, 1, states.shape[1], states.shape[1])
    if causal:
        mask = mask + torch.full_like(mask[0, 0], torch.finfo(mask.dtype).min).triu(1)
    arguments["attention_mask"] = mask
    made = []
    for layer in layers:
        states = hidden_of(layer(states, **arguments))
        made.append(states)
    return made


def largest_norms(states: list[Tensor]) -> tuple[float, float, int]:
    """Return the largest norms of the first token and of all others, in medians of a layer, and the former's layer."""
    first, others = [], []
    for state in states:
        norms = state.norm(dim=-1)
        first.append(float((norms[:, 0] / norms.median()).max()))
        others.append(float((norms[:, 1:] / norms.median()).max()))
    return max(first), max(others), first.index(max(first)) + 1


def similarity(state: Tensor) -> float:
    """Return the mean cosine between the tokens of a cloud, the first left out."""
    unit = nn.functional.normalize(state[:, 1:], dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    count = cosines.shape[1]
    return float((cosines.sum() / len(cosines) - count) / (count * (count - 1)))


def difference(first: Tensor, second: Tensor) -> float:
    """Return the norm of a difference in percent of the second's."""
    return float(100 * (first - second).norm() / second.norm())


def kept_bytes(model: nn.Module, points: Tensor, labels: Tensor) -> int:
    """Count the bytes that autograd keeps for the backward pass of a step, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(points=points, labels=labels).loss  # noqa: B018  the graph is built by it
    return sum(kept.values())


def memory_row(name: str, points: Tensor, labels: Tensor) -> list[str]:
    """Return what is kept of a step, with a frozen encoder and with LoRA, in percent of training all of it.

    Tokenizer and head are trained in all of them.
    """
    some_layers = r".*encoder.*\.({})".format("|".join(QUERIES_AND_VALUES[name]))
    kept = []
    for targets in ("full", "frozen", some_layers, "all layers"):
        model: nn.Module = build(name)
        if targets == "full":
            model.requires_grad_(True)
        elif targets != "frozen":
            chosen = {} if targets == "all layers" else {"target_modules": targets}
            model = get_peft_model(model, build_peft_config("lora", model, {"r": 8, **chosen}))
        kept.append(kept_bytes(model.train(), points, labels))
    return [f"{kept[0] / 2**20:.0f}", *(f"{100 * share / kept[0]:.0f}" for share in kept[1:])]


@torch.no_grad()
def state_row(model: Any2PointForPointCloudClassification, points: Tensor) -> list[str]:
    """Return norms, similarity and differences of a donor's states; its layers are in bfloat16 afterwards."""
    model = model.eval().any2point
    family, encoder = model.family, model.encoder
    tokens = model(points=points, output_hidden_states=True).hidden_states[0]
    layers = family.layers_of(encoder)
    full = run_layers(encoder, layers, tokens, causal=False)
    causal = run_layers(encoder, layers, tokens, causal=True)
    without = run_layers(encoder, layers, tokens[:, 1:], causal=False)
    cells = []
    for states in (full, causal):
        first, others, layer = largest_norms(states)
        cells.append(f"{first:.0f} (layer {layer}), {others:.0f}")
    cells.append(f"{similarity(full[-1]):.2f}, {similarity(causal[-1]):.2f}")
    cells.append(f"{difference(without[-1], full[-1][:, 1:]):.1f}")
    half = encoder.to(torch.bfloat16)
    rounded = run_layers(half, family.layers_of(half), tokens.bfloat16(), causal=False)
    cells.append(f"{difference(rounded[-1].float(), full[-1]):.1f}")
    return cells


def trained_accuracy(splits: tuple[Split, Split, int], seed: int, start_token: bool) -> float:
    """Train around two layers of SmolLM2 for `STEPS` steps, and return the test accuracy in percent.

    The class token of a model around a decoder is drawn at random; with `start_token` it begins as the embedding of
    the donor's first token of a text.
    """
    rows, test, num_labels = splits
    model = build_cell(Cell(seed, "guided_adapter", 0, "embedded", "smollm2", "pretrained"), num_labels)
    if start_token:
        # The layers that are opened have no words, so that the table of words is read from the donor's file.
        words = AutoModel.from_pretrained(donors_folder() / "smollm2").get_input_embeddings().weight
        token = model.get_base_model().any2point.class_token.token
        token.data.copy_(words[model.get_base_model().config.encoder_config.bos_token_id].to(token))
    # Loading the words may have drawn numbers: both trainings draw the same ones.
    torch.manual_seed(seed)
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    settings = earlier_recipe.TRAINING
    optimizer = torch.optim.AdamW(trained, settings["learning_rate"], weight_decay=settings["weight_decay"])
    # Without warmup the model stays at the accuracy of chance.
    schedule = get_cosine_schedule_with_warmup(optimizer, round(settings["warmup_steps"] * STEPS), STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(rows.labels), (BATCH,), generator=generator)
        points = augmented(rows.points[chosen], generator)[:, :CUT]
        nn.functional.cross_entropy(model(points=points).logits, rows.labels[chosen]).backward()
        nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        logits = torch.cat([model.eval()(points=part[:, :CUT]).logits for part in test.points.split(47)])
    return float(100 * (logits.argmax(dim=1) == test.labels).float().mean())


def print_table(titles: list[str], row: Callable[[str], list[str]]) -> None:
    """Print a table with a row for each donor."""
    print(f"| donor | {' | '.join(titles)} |")
    print("|---" * (1 + len(titles)) + "|")
    for name in DONORS:
        print(f"| {' | '.join([name, *row(name)])} |", flush=True)


def main() -> None:
    """Print the table, that of memory, or train with and without a start token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="what autograd keeps of a step")
    parser.add_argument("--start", action="store_true", help="train with and without a start token, three seeds")
    options = parser.parse_args()
    rows = load_point_dataset("shapes", split="test").with_format("torch")[:CLOUDS]
    points, labels = rows["points"][:, :POINTS], rows["label"]
    if options.start:
        print("| seed | class token drawn, % | start token, % |")
        print("|---|---|---|")
        splits = load_sets(None)["embedded"]
        for seed in (0, 1, 2):
            accuracies = [trained_accuracy(splits, seed, start_token) for start_token in (False, True)]
            print(f"| {seed} | {accuracies[0]:.1f} | {accuracies[1]:.1f} |", flush=True)
    elif options.memory:
        # A few clouds are enough for shares.
        titles = ["all trained, MB", "frozen, %", "LoRA on queries and values, %", "LoRA on all layers, %"]
        print_table(titles, lambda name: memory_row(name, points[:4], labels[:4]))
    else:
        titles = ["first and other norms", "with a causal mask", "similarity", "without the first, %", "bfloat16, %"]
        print_table(titles, lambda name: state_row(build(name), points))


if __name__ == "__main__":
    main()
