"""ACT checkpoints as the authors' programs write them, full-size or small, and the teachers that they started from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_any3d.conversions.act import convert_act_state_dict, teacher_of
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"
KINDS = {
    "cls": "cls",
    "cls_modelnet": "cls",
    "partseg": "partseg",
    "semseg": "semseg",
    "dvae": "dvae",
    "dvae_shallow": "dvae",
    "dvae_bert": "dvae",
    "dvae_clip": "dvae",
    "dvae_clip_deep": "dvae",
    "dvae_plain": "dvae",
    "pretrain": "pretrain",
    "pretrain_cls": "pretrain",
}
WIDTH, TEACHER_WIDTH, CODES, PROMPTS = 64, 128, 32, 4
_STUDENT = {384: WIDTH, 1152: 3 * WIDTH, 1536: 4 * WIDTH}
_TEACHER = {768: TEACHER_WIDTH, 3072: 2 * TEACHER_WIDTH, 2304: 3 * TEACHER_WIDTH, 384: WIDTH, 64: PROMPTS, 16: PROMPTS}
_EDGES = {size: size // 16 for size in (128, 256, 512, 1024, 2304)}
# Small sizes by the pattern of a name. Widths of the mini-PointNet are the same in all models.
_SMALLER: tuple[tuple[str, dict[int, int]], ...] = (
    (r"second_conv\.3\.", {384: WIDTH, 256: WIDTH}),
    (r"(encoder|side)\.(first|second)_conv\.", {}),
    (r"codebook", {8192: CODES, 1024: CODES, 384: WIDTH, 256: WIDTH}),
    (r"dgcnn_1\.layer5\.", {2304: 144, 8192: CODES, 1024: CODES}),
    (r"dgcnn_2\.layer5\.", {2304: 144, 384: WIDTH, 256: WIDTH}),
    (r"dgcnn_\d\.input_trans\.", {128: 8, 384: WIDTH, 256: WIDTH}),
    (r"dgcnn_", _EDGES),
    (r"(^|tokenizer\.)decoder\.", {384: WIDTH, 256: WIDTH, 1024: 48, 512: 40, 389: WIDTH + 5, 261: WIDTH + 5}),
    (r"visual_|deep_|proj_p", _TEACHER),
    (r"cls_head_finetune", {768: 2 * WIDTH, 256: 24}),
    (r"label_conv_cls", {}),
    (r"propagation_0_cls", {1155: 3 * WIDTH + 3, 1536: 56, 1024: 40}),
    (r"s[123]_cls", {3392: 40 + 6 * WIDTH + 64, 3328: 40 + 6 * WIDTH, 512: 32, 256: 24}),
    (r"lm_head", {8192: CODES, 1024: CODES, 384: WIDTH}),
    (r"cls_head\.", {512: 20, 384: WIDTH}),
    ("", _STUDENT),
)


class Original:
    """A case of `tests/reference/act_*.json`.

    Args:
        case: Its name without `act_`.
        small: Whether all widths are small; names and depths stay.
        variant: "linear" or "side": the same checkpoint as if fine-tuned so.
    """

    def __init__(self, case: str, small: bool = True, variant: str | None = None):
        self.case, self.kind, self.small, self.variant = case, KINDS[case], small, variant
        self.manifest = json.loads((FOLDER / f"act_{case}.json").read_text())

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The released program's tensors, without `module.`."""
        shapes = dict(self.manifest["state_dict"])
        if self.variant:
            shapes |= self.manifest[f"extra_state_{self.variant}"]
            shapes = {n: spec for n, spec in shapes.items() if n not in self.manifest[f"missing_state_{self.variant}"]}
        return {
            name: torch.from_numpy(fill(name, _smaller(name, shape) if self.small else shape, dtype))
            for name, (shape, dtype) in shapes.items()
        }

    @cached_property
    def expected(self) -> dict[str, torch.Tensor]:
        """Stored results of the complete checkpoint."""
        return load_file(FOLDER / f"act_{self.case}.safetensors")

    @property
    def points(self) -> torch.Tensor:
        spec = {name: self.manifest["input"][name] for name in ("name", "batch", "count", "channels")}
        return torch.from_numpy(points(**spec))

    @property
    def converted(self) -> dict[str, torch.Tensor]:
        """The tensors under our names."""
        return convert_act_state_dict(self.kind, self.state)

    @property
    def frozen(self) -> dict[str, torch.Tensor]:
        """The tensors of the teacher under transformers' names."""
        prefix = "autoencoder.encoder." if self.kind == "pretrain" else "encoder."
        return {name.removeprefix(prefix): t for name, t in self.converted.items() if name.startswith(prefix)}

    def content(self, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """The content of the file as the authors' program writes it."""
        state = dict(self.state if state is None else state)
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]}
        if self.kind in ("partseg", "semseg"):
            return {"epoch": 60, "train_acc": 0.9, "model_state_dict": state, "optimizer_state_dict": optimizer}
        # As runs on one machine write it; those of several processes have bare names.
        state = {f"module.{name}": tensor for name, tensor in state.items()}
        return {
            "base_model": state,
            "optimizer": optimizer,
            "epoch": 300,
            "metrics": {"acc": 88.2},
            "best_metrics": {},
        }

    def public_teacher(self) -> PreTrainedModel:
        """The encoder that the program started from, with random embeddings; CLIP with both its towers."""
        kind, frozen = teacher_of(self.state), self.frozen
        sizes = {
            "hidden_size": TEACHER_WIDTH if self.small else 768,
            "intermediate_size": 2 * TEACHER_WIDTH if self.small else 3072,
            "num_attention_heads": 2 if self.small else 12,
            "num_hidden_layers": len({match[1] for n in frozen if (match := re.search(r"layers?\.(\d+)\.", n))}),
        }
        embeddings = {"vocab_size": 9, "max_position_embeddings": 7} if kind == "bert" else {"image_size": 32}
        torch.manual_seed(0)
        encoder = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **embeddings))
        report = encoder.load_state_dict(frozen, strict=False)
        assert not report.unexpected_keys
        assert all(name.startswith(("embeddings.", "pooler.")) for name in report.missing_keys)
        if kind != "clip_vision_model":
            return encoder
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        towers = {"vision_config": encoder.config.to_dict(), "text_config": text | {"vocab_size": 9}}
        clip = AutoModel.from_config(AutoConfig.for_model("clip", **towers, projection_dim=8))
        clip.vision_model.load_state_dict(encoder.state_dict())
        return clip


def _smaller(name: str, shape: list[int]) -> list[int]:
    table = next(table for pattern, table in _SMALLER if re.search(pattern, name))
    return [table.get(size, size) for size in shape]
