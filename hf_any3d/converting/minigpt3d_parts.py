"""The pretrained parts of MiniGPT-3D, each from its own file: config and tensors under our names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Config, Blip2QFormerConfig, PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.checkpoints import account, read_checkpoint
from hf_any3d.conversions.minigpt3d import convert_blip2_state_dict, convert_point_encoder_state_dict
from hf_any3d.conversions.minigpt3d_sizes import point_encoder_sizes, qformer_sizes
from hf_any3d.conversions.phi import convert_phi_state_dict
from hf_any3d.conversions.shapes import size_of
from hf_any3d.converting.phi_config import normed_phi_config
from hf_any3d.converting.streamed_weights import save_weights
from hf_any3d.converting.weight_files import read_weights
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.opening import QueriesAndQFormer


@dataclass
class Part:
    """A part of the model, not built.

    Args:
        source: The file or directory that it came from.
        files: All files of it whose numbers went in.
        architecture: Name of its class.
        config: Its configuration.
        state: Its tensors, of which those that files hold are read when they are needed.
        is_converted: Whether it opens as it is, so that a model can name it instead of storing it.
    """

    source: Path
    files: list[Path]
    architecture: str
    config: PreTrainedConfig
    state: dict[str, torch.Tensor]
    is_converted: bool = False

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write what `from_pretrained` opens."""
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(directory, self.architecture, self.config, self.state, dtype)


def read_point_encoder(file: str | os.PathLike, num_groups: int | None = None, group_size: int | None = None) -> Part:
    """Read the point encoder's own file, `point_model.pth`, for `AutoModel`.

    Args:
        file: The file.
        num_groups: Patches of a cloud; published: 512.
        group_size: Points of a patch; published: 32.

    Raises:
        ValueError: The file cannot be read, or its tensors are not all those of a point encoder.
        FileNotFoundError: No such file.
    """
    with told_of(file):
        state = convert_point_encoder_state_dict(read_checkpoint(file, ("base_model",)))
        settings: dict[str, Any] = point_encoder_sizes(state)
        settings |= {"num_groups": num_groups} if num_groups else {}
        settings |= {"group_size": group_size} if group_size else {}
        published = MiniGPT3DConfig().point_config.to_dict()
        config = ActConfig(**published | settings)
    return accounted(file, [Path(file)], ActModel, config, state)


def read_qformer(file: str | os.PathLike) -> Part:
    """Read Q-Former and queries of a BLIP-2 file such as `blip2_pretrained_flant5xxl.pth`, for `build_from_parts`.

    Raises:
        ValueError: The file cannot be read, or what it holds of a Q-Former is not all of one.
        FileNotFoundError: No such file.
    """
    with told_of(file):
        state = convert_blip2_state_dict(read_checkpoint(file, ("model",)))
        asking = Blip2QFormerConfig(**qformer_sizes(state))
        count = size_of(state, "query_tokens", 1) if "query_tokens" in state else Blip2Config().num_query_tokens
        # BLIP-2 takes what the Q-Former attends to for the width of its eyes, which are left out.
        seen = {"hidden_size": asking.encoder_hidden_size}
        config = Blip2Config(vision_config=seen, qformer_config=asking.to_dict(), num_query_tokens=count)
    return accounted(file, [Path(file)], QueriesAndQFormer, config, state)


def read_language_model(directory: str | os.PathLike) -> Part:
    """Read Phi-2 in any of its three layouts, for `AutoModelForCausalLM`.

    Args:
        directory: With `config.json` and weights.

    Raises:
        ValueError: A file cannot be read, or the tensors are not all those of the model that config.json describes.
        FileNotFoundError: A file is missing.
    """
    directory = Path(directory)
    config = normed_phi_config(directory / "config.json")
    original, files = read_weights(directory)
    with told_of(directory):
        state = convert_phi_state_dict(original, config.num_attention_heads)
    return accounted(directory, files, NormedPhiForCausalLM, config, state)


@contextmanager
def told_of(source: str | os.PathLike) -> Iterator[None]:
    """Name a file in errors about what is in it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(os.fspath(source)) else f"{source}: {text}") from error


def accounted(
    source: str | os.PathLike,
    files: list[Path],
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: dict[str, torch.Tensor],
) -> Part:
    """Make a part of tensors that are exactly those of a model.

    Args:
        source: What it came from, for messages.
        files: All files of it.
        kind: Class of the model.
        config: Its configuration.
        state: The tensors.

    Raises:
        ValueError: If tensors are missing, left over or of another shape.
    """
    with torch.device("meta"):
        expected = kind(config).state_dict()
    account(source, state, expected)
    return Part(Path(source), files, kind.__name__, config, state)
