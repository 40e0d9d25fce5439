"""Assemble a MiniGPT-3D from its parts and the checkpoints of its training, without building the model."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import below
from hf_any3d.conversions.minigpt3d.names import MINIGPT3D, convert_minigpt3d_state_dict
from hf_any3d.conversions.minigpt3d.parts import Part, lora_rank
from hf_any3d.conversions.renaming import count_left_out, count_of
from hf_any3d.conversions.tensor_checks import account, listed
from hf_any3d.modeling.layers.low_rank import INNER
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration, stage_names

_ENCODER = "point_encoder."
STAGES = {0: "what training starts from", 1: "stage I", 3: "stage II or III", 4: "stage IV"}
"""Kinds of files by the number of their stage. Files of stages II and III hold the same parts."""
# Parts that training initializes, with the last stage whose file lacks them. All others must be in a file.
_INITIALIZED = {"bridge.point_mlp.": 0, "bridge.qformer.": 1, "bridge.experts.router.": 3}


@dataclass(frozen=True)
class StageFile:
    """A checkpoint of training.

    Args:
        path: The file.
        stage: Key of `STAGES`.
        entries: Number of tensors in the file.
        trained: Trained tensors, under our names in a model without LoRA, with those of its matrices.
        encoder: Tensors of the frozen point encoder, under its own names.
        left_out: Tensors that have no place in the model, by the first word of their names.
    """

    path: Path
    stage: int
    entries: int
    trained: dict[str, torch.Tensor]
    encoder: dict[str, torch.Tensor]
    left_out: dict[str, int]


def read_stage(path: str | os.PathLike) -> StageFile:
    """Read a checkpoint of training."""
    original = read_checkpoint(path, ("model",))
    with errors_about(path):
        state = convert_minigpt3d_state_dict(original)
        trained = {name: tensor for name, tensor in state.items() if not name.startswith(_ENCODER)}

        def has(*parts: str) -> bool:
            return any(all(part in name for part in parts) for name in trained)

        # The last stage first: its files may hold parts of earlier ones.
        if has("bridge.experts.router."):
            stage = 4
        elif has("bridge.qformer.", ".low_rank_"):
            stage = 3
        elif has("language_model.") or has("bridge.projector."):
            stage = 0
        else:
            stage = 1
    encoder = below(state, _ENCODER)
    return StageFile(Path(path), stage, len(original), trained, encoder, count_left_out(original, MINIGPT3D))


def check_stage(file: StageFile, encoder: Part, model: MiniGPT3DForConditionalGeneration) -> None:
    """Check that a file has exactly the tensors that its stage trains, and a copy of the given encoder, if any."""
    if file.encoder:
        account(file.path, file.encoder, encoder.state)
    differ = []
    for name, copy in file.encoder.items():
        # Released programs stored it in half precision: rounded to the narrower type, equal numbers are equal again.
        narrow = min(encoder.state[name].dtype, copy.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(encoder.state[name].to(narrow), copy.to(narrow)):
            differ.append(name)
    if differ:
        raise ValueError(
            f"{file.path}: its copy of the point encoder is not {encoder.source}: {len(differ)} of "
            f"{len(file.encoder)} tensors differ: {listed(differ)}; give the one that it was trained with"
        )
    weights = {_name_in_part(name): tensor for name, tensor in model.base_model.state_dict().items()}
    expected = stage_names(model, file.stage or 3)
    if not file.stage:
        # TinyGPT-V's program saves what it has trained: LoRA, the weights of norms, and both projections.
        expected = [name for name in expected if name.startswith(("language_model.", "bridge.projector."))]
    expected_weights = {name: weights[name] for name in expected}
    account(file.path, file.trained, expected_weights)
    # A LoRA that has learned nothing is not the one of images.
    unlearned = [name for name in expected if name.endswith(".low_rank_b") and not file.trained[name].any()]
    if unlearned and not file.stage:
        raise ValueError(
            f"{file.path}: {unlearned[0]} is 0, so no image has trained it; expected TinyGPT-V's weights after "
            "its third stage"
        )


def initialize_untrained(
    missing: Mapping[str, torch.Tensor], stage: int, queries: torch.Tensor, std: float
) -> dict[str, torch.Tensor]:
    """Initialize tensors that no file has as training does: query sets with BLIP-2's queries, others with fixed noise.

    Returns:
        The initialized tensors by name; those that a file should have had are left out.
    """
    # A seed of its own, so that converting the same files twice gives equal models.
    generator = torch.Generator().manual_seed(0)
    initialized = {}
    for name, empty in missing.items():
        if name.startswith("bridge.experts.queries.") and stage < 4:
            initialized[name] = queries
        elif _is_initialized(name, stage):
            tensor = initialized[name] = torch.empty(empty.shape)
            if name.endswith((".bias", ".low_rank_b")):
                tensor.zero_()
            elif name.endswith(".low_rank_a"):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)  # as PEFT initializes A
            else:
                tensor.normal_(std=std, generator=generator)
    return initialized


def _is_initialized(name: str, stage: int) -> bool:
    """Return whether training up to a stage has only initialized a tensor."""
    for part, last in _INITIALIZED.items():
        if name.startswith(part):
            return stage <= last
    return False


# Settings without a tensor. The released programs never use another scale or other layers.
_TEXT_LORA = {"lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["query_key_value", "dense"]}
_QFORMER_LORA = {"lora_dropout": 0.1, "target_modules": ["query", "key", "value"]}
_TEXT_LORA_RANK, _QFORMER_LORA_RANK = 64, 8


@dataclass(frozen=True)
class Assembly:
    """A complete model that has not been built.

    Args:
        parts: Point encoder, Q-Former and language model.
        files: The checkpoints of training.
        model: The model on the meta device: names and shapes only.
        state: The state dict of its body, memory-mapped where possible, without the parts named in
            `model.config.parts`.
        fresh: The parts that no file has.
    """

    parts: tuple[Part, Part, Part]
    files: tuple[StageFile, ...]
    model: MiniGPT3DForConditionalGeneration
    state: dict[str, torch.Tensor]
    fresh: tuple[str, ...]


def assemble(
    point_encoder: Part,
    qformer: Part,
    language_model: Part,
    files: Sequence[StageFile],
    *,
    stage: int | None = None,
) -> Assembly:
    """Combine parts and checkpoints, which are in the order of training; later ones take precedence.

    `stage` is 2 or 3, whose files hold the same; by default 3.
    """
    parts = (point_encoder, qformer, language_model)
    last = files[-1]
    if stage is not None and (stage not in (2, 3) or last.stage != 3):
        raise ValueError(f"stage={stage}; {last.path} holds {STAGES[last.stage]}, and only 2 and 3 look alike")
    config = _config(parts, files)
    config.stage = stage or last.stage or None
    # Files of later stages do not say what their training started from.
    config.image_priors = None
    if any(file.stage == 0 for file in files):
        config.image_priors = True
    # Gigabytes of weights are only renamed on the way from file to file, so the model needs none of its own.
    with torch.device("meta"):
        model = MiniGPT3DForConditionalGeneration(config)
    # All sets of queries start as copies of BLIP-2's.
    queries = qformer.state["query_tokens"][0]  # (num_query_tokens, hidden)
    # Before any training; the files below replace what their stages trained.
    state = _state_of_parts(parts, queries)
    for file in files:
        check_stage(file, point_encoder, model)
        # Later files hold newer values of what an earlier stage trained.
        state |= file.trained
    expected = model.base_model.state_dict()
    named = {_name_in_part(name): name for name in expected}
    state = {named.get(name, name): tensor for name, tensor in state.items()}
    missing = {name: tensor for name, tensor in expected.items() if name not in state}
    initialized = initialize_untrained(missing, last.stage, queries, config.initializer_range)
    state |= initialized
    paths = ", ".join(str(file.path) for file in files)
    account(paths, state, expected)
    fresh = {_part_of(name) for name in initialized}
    return Assembly(parts, tuple(files), model, state, tuple(sorted(fresh)))


def _name_in_part(name: str) -> str:
    """Return the name of a tensor in a model without LoRA, whose layers are not below another one."""
    return name.replace(f".{INNER}.", ".")


def _part_of(name: str) -> str:
    """Return the part of the model that a tensor is of, such as "bridge.qformer" or "bridge.experts.router"."""
    words = name.split(".")
    if ".experts." in name:
        return ".".join(words[:3])
    return ".".join(words[:2])


def _state_of_parts(parts: tuple[Part, Part, Part], queries: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of point encoder, Q-Former and language model under our names, before any training."""
    point_encoder, qformer, language_model = parts
    state = {f"point_encoder.{name}": tensor for name, tensor in point_encoder.state.items()}
    for name, tensor in qformer.state.items():
        if name != "query_tokens":
            state[f"bridge.{name}"] = tensor
    # The model has several sets of queries, and these are the first.
    state["bridge.experts.queries.0"] = queries
    for name, tensor in language_model.state.items():
        state[f"language_model.{name}"] = tensor
    return state


def _config(parts: Sequence[Part], files: Sequence[StageFile]) -> MiniGPT3DConfig:
    point_config, blip2_config, text_config = (part.config for part in parts)
    trained: dict[str, torch.Tensor] = {}
    for file in files:
        trained |= file.trained
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with errors_about(files[-1].path):
        # Where no file has LoRA, it is initialized below with the published rank.
        text_rank = lora_rank(trained, "language_model.") or _TEXT_LORA_RANK
        rank = lora_rank(trained, "bridge.qformer.") or _QFORMER_LORA_RANK
        sizes: dict[str, Any] = {"projector_width": trained["bridge.projector.fc1.weight"].shape[0]}
        layers = count_of(trained, r"bridge\.point_mlp\.layers\.(\d+)\.")
        if layers:
            sizes["point_mlp_widths"] = []
            # All but the last layer, whose width is the Q-Former's
            for number in range(layers - 1):
                weight = trained[f"bridge.point_mlp.layers.{number}.weight"]
                sizes["point_mlp_widths"].append(weight.shape[0])
        if "bridge.experts.router.0.weight" in trained:
            sizes["router_width"] = trained["bridge.experts.router.0.weight"].shape[0]
            sizes["num_query_experts"] = trained["bridge.experts.router.2.weight"].shape[0]
    return MiniGPT3DConfig(
        point_config=point_config,
        qformer_config=Blip2QFormerConfig(**blip2_config.qformer_config.to_dict() | no_dropout),
        text_config=text_config,
        num_query_tokens=blip2_config.num_query_tokens,
        use_query_experts=files[-1].stage == 4,
        text_lora={"r": text_rank, **_TEXT_LORA},
        qformer_lora={"r": rank, "lora_alpha": 2 * rank, **_QFORMER_LORA},
        **sizes,
    )
