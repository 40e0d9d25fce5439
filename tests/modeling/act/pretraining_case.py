"""A stored pretraining step of the released ACT program, and our model with the same weights."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.act.names import PRETRAINING
from hf_any3d.conversions.renaming import rename_tensors
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig, ActConfig, ActForPreTraining
from tests.modeling.act.reference_case import RELEASED, ReferenceCase

# The released ViT without its patch embedding, which is not used.
_VIT_B = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "layer_norm_eps": 1e-6}
_SMALL_IMAGE = {"image_size": 32, "patch_size": 16}
# Names of parameters in the released program's manifest that our model does not have.
NEVER_READ = {"ACT_encoder.lm_head.weight", "ACT_encoder.lm_head.bias"}
FEATURE_HEAD = "feature_head."
# Unused modules of the frozen encoder, which released checkpoints do not contain.
NEVER_STORED = ("autoencoder.encoder.embeddings.", "autoencoder.encoder.pooler.")


class PretrainingCase(ReferenceCase):
    """Reads `tests/reference/act_pretrain{_cls}.json` and `.safetensors`."""

    def __init__(self, name: str):
        super().__init__(name, "pretrain")

    @cached_property
    def renames(self) -> dict[str, list[str]]:
        """Our names of the released parameters that train; nothing else is compared by name."""
        names = {*self.manifest["train.grad_norms"], *self.manifest["trainable_without_gradient"]} - NEVER_READ
        return {name: list(rename_tensors({name: torch.empty(0)}, PRETRAINING)) for name in names}

    @cached_property
    def mask(self) -> torch.Tensor:
        """`(batch, groups)`, True where hidden."""
        rows = self.manifest["masked_indices"]
        return torch.zeros(len(rows), 64, dtype=torch.bool).scatter_(1, torch.tensor(rows), True)

    @property
    def noise(self) -> torch.Tensor:
        """`(batch, groups, codes)`, the named Gumbel noise."""
        shape = (*self.mask.shape, self.manifest["constructor_args"]["dvae_config"]["num_tokens"])
        generator = np.random.default_rng(zlib.crc32(self.manifest["gumbel_noise_name"].encode()))
        uniform = generator.random(shape).clip(1e-12, 1 - 1e-12)
        return torch.from_numpy(-np.log(-np.log(uniform))).float()

    def build(self, **changes: Any) -> ActForPreTraining:
        """Build our model with all converted weights."""
        state = convert_act_state_dict("pretrain", self.original)
        student = self.manifest["constructor_args"]["transformer_config"]
        teacher = self.manifest["constructor_args"]["dvae_config"]
        layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("autoencoder.encoder.layers."))
        encoder_config = AutoConfig.for_model("vit", num_hidden_layers=layers, **_VIT_B, **_SMALL_IMAGE)
        autoencoder_config = ActAutoencoderConfig(
            encoder_config=encoder_config,
            num_codes=teacher["num_tokens"],
            num_prompts=teacher["num_prompt_token"],
            prompt_dropout=0.0,
            **RELEASED,
        )
        config = ActConfig(
            autoencoder_config=autoencoder_config,
            mask_ratio=student["mask_ratio"],
            mask_type={"rand": "random"}.get(student["mask_type"], student["mask_type"]),
            class_token_loss=student["cls_loss"],
            class_token_layer=student["register_shallow_hook"],
            feature_head_width=student["cls_dim"],
            encode_visible_only=False,
            noisy_targets=True,
            teacher_in_training_mode=True,
            **RELEASED | changes,
        )
        # All weights that are used are loaded below.
        with no_init_weights():
            model = ActForPreTraining(config, ActAutoencoder(autoencoder_config))
        report = model.load_state_dict(state, strict=False)
        assert not report.unexpected_keys
        assert all(name.startswith(NEVER_STORED) for name in report.missing_keys), report.missing_keys
        return model.eval()


class Stages:
    """Record the intermediate tensors that the cases store, by the cases' names."""

    def __init__(self, model: ActForPreTraining):
        self.seen: dict[str, torch.Tensor] = {}
        self._watch(model.act.patch_encoder, "student_tokens")
        self._watch(model.act.position_embed, "student_pos_visible")
        for number in (0, 5, 11):
            self._watch(model.act.blocks.layers[number], f"student_block_{number}")
        self._watch(model.act.norm, "student_encoder_out_with_cls")
        self._watch(model.decoder_norm, "decoder_out")

    def _watch(self, module: nn.Module, name: str) -> None:
        def keep(_: nn.Module, args: tuple, output: torch.Tensor) -> None:
            # Keep the last pass, as in the cases: the decoder runs a second time for the class token.
            self.seen[name] = output.detach()

        module.register_forward_hook(keep)
