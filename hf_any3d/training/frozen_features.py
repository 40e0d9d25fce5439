"""Features of a frozen encoder, computed once for linear probes and kept in the cache of datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value, config
from datasets.fingerprint import Hasher
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.data.tables.numpy_rows import columns_of, has_own_rows, numpy_rows
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.pretrained_parts.tensors import tensors_checksum
from hf_any3d.processing.point_clouds import PointCloudProcessor

# Settings without effect on the features: labels and forms of outputs, which all configs have, and where weights,
# which are compared themselves, came from.
_OF_NO_EFFECT = {*PreTrainedConfig().to_dict(), "parts"}


def frozen_features(
    model: PreTrainedModel,
    rows: Dataset,
    processor: PointCloudProcessor | None = None,
    batch_size: int = 32,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Compute the features that a classifier's head reads, once for each encoder and dataset.

    They are kept in a file whose name has the checksum of the encoder's weights and settings, the fingerprint of the
    rows and the settings of the processor; if it exists, nothing is computed.

    Args:
        model: A classifier or an encoder with `pooler_output`; it runs in eval mode.
        rows: Clouds as `points`; other columns of numbers, such as `label`, are kept.
        processor: Prepares the clouds; None for points that are stored as the model takes them.
        batch_size: Clouds per batch.
        cache_dir: Directory of the files; by default `hf_any3d_features` in the cache of datasets.

    Returns:
        The rows with `features`, float32 `(features,)`, in place of `points`.
    """
    if processor is not None and processor.seed is None:
        raise ValueError("processor has seed=None; expected a number, as features are computed only once")
    encoder = cast("PreTrainedModel", model.base_model)
    settings = {name: value for name, value in encoder.config.to_dict().items() if name not in _OF_NO_EFFECT}
    # Weights themselves, not the name of a checkpoint, which may have changed on the hub.
    weights = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    fingerprint = Hasher.hash(
        [
            rows._fingerprint,  # `datasets` changes it with every step that changes the rows
            tensors_checksum(weights),
            type(encoder).__name__,
            _as_text(settings),
            _as_text(None if processor is None else processor.to_dict()),
        ]
    )
    folder = Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "hf_any3d_features")
    folder.mkdir(parents=True, exist_ok=True)
    device = encoder.device

    @torch.no_grad()
    def compute(batch: dict[str, Any]) -> dict[str, Any]:
        if processor is None:
            points = torch.from_numpy(np.stack([np.asarray(cloud, np.float32) for cloud in batch["points"]]))
        else:
            # Columns of a batch become a row for each cloud.
            clouds = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            points = processor(clouds)["points"]
        pooled = encoder(points.to(device), return_dict=True).pooler_output
        # What a transform has changed is not what is stored.
        others = {name: batch[name] for name in kept} if are_own else {}
        return {**others, "features": pooled.float().cpu().numpy()}  # (batch, features)

    # Labels and names are needed next to the features; points would only be copied into the cache.
    are_own, given = has_own_rows(rows), columns_of(rows)
    kinds = (Value, ClassLabel)
    kept = {name: kind for name, kind in rows.features.items() if isinstance(kind, kinds) and name in given}
    with evaluation_mode(model):
        computed = numpy_rows(rows).map(
            compute,
            batched=True,
            batch_size=batch_size,
            remove_columns=[name for name in rows.column_names if name not in kept],
            features=Features({**kept, "features": Sequence(Value("float32"))}),
            cache_file_name=str(folder / f"features-{fingerprint}.arrow"),
            load_from_cache_file=True,
            new_fingerprint=fingerprint,
            desc="frozen features",
        )
    return computed.with_format("numpy") if are_own else computed


def _as_text(settings: Mapping[str, Any] | None) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


class HeadOnFeatures(nn.Module):
    """The head of a classifier as a model of its own, which takes features in place of points.

    It is the classifier's own module: once trained on `frozen_features`, the classifier has it.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.classifier = model.get_submodule("classifier")
        self.config = model.config

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """Classify clouds by features `(batch, features)`; with labels the loss is returned too."""
        logits = self.classifier(features)  # (batch, labels)
        return SequenceClassifierOutput(loss=classification_loss(logits, labels, self.config), logits=logits)
