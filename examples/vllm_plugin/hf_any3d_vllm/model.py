"""A chat model of hf_any3d as a multimodal model of vLLM 0.33."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
)

from hf_any3d_vllm.prompts import MODALITY, dummy_clouds
from hf_any3d_vllm.tower import PointTower, body_name, is_of_tower, text_architecture


class PointCloudParser(MultiModalDataParser):
    """Knows the modality `point_cloud`: an array (points, channels), or a list of them."""

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {**super()._get_subparsers(), MODALITY: self._parse_point_clouds}

    def _parse_point_clouds(self, data: Any) -> ProcessorBatchItems | None:
        clouds = [data] if getattr(data, "ndim", 0) == 2 else list(data)
        return ProcessorBatchItems(clouds, MODALITY) if clouds else None


class PointCloudInfo(BaseProcessingInfo):
    """Facts about the model for the processing of inputs."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return that a prompt may have any number of clouds."""
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the tokens of a cloud."""
        return {MODALITY: self.get_hf_config().num_query_tokens}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """Return that requests cannot change the processor."""
        return {"text_kwargs": set()}

    def get_data_parser(self) -> MultiModalDataParser:
        """Return a parser that knows point clouds."""
        return PointCloudParser(expected_hidden_size=self._get_expected_hidden_size())


class PointCloudDummyInputs(BaseDummyInputsBuilder[PointCloudInfo]):
    """Inputs with which vLLM measures the memory that the model needs."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return no text: placeholders may have none; see `PointCloudMultiModalProcessor.get_dummy_inputs`."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Return random clouds."""
        processor = self.info.get_hf_processor().feature_extractor
        channels = 3 * len(processor.features)
        return {MODALITY: dummy_clouds(mm_counts.get(MODALITY, 0), processor.num_points, channels)}


class PointCloudMultiModalProcessor(BaseMultiModalProcessor[PointCloudInfo]):
    """Prepares clouds, and expands each placeholder to the tokens of a cloud."""

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        """Return a prompt of placeholders with their clouds."""
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        prompt = [self.info.get_hf_config().point_token_id] * mm_counts.get(MODALITY, 0)
        return ProcessorInputs(prompt=prompt, mm_data_items=self.info.parse_mm_data(data, validate=False))

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        points = self.info.get_hf_processor().read_points(hf_data[f"{MODALITY}s"])
        return BatchFeature({"points": [torch.from_numpy(cloud) for cloud in points]})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"points": MultiModalFieldConfig.batched(MODALITY)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        token = config.point_token_id
        return [PromptReplacement(modality=MODALITY, target=[token], replacement=[token] * config.num_query_tokens)]


@MULTIMODAL_REGISTRY.register_processor(
    PointCloudMultiModalProcessor, info=PointCloudInfo, dummy_inputs=PointCloudDummyInputs
)
class MiniGPT3DForConditionalGeneration(nn.Module, SupportsMultiModal):
    """The tower of hf_any3d and a language model of vLLM; see the interfaces of vLLM for its methods."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Refuse texts: prompts are token ids, see `hf_any3d_vllm.prompts.vllm_prompt`."""
        raise ValueError("prompts with point clouds are token ids; make them with hf_any3d_vllm.prompts.vllm_prompt")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        architecture = text_architecture(config)
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.point_token_id])
        with self._mark_tower_model(vllm_config, MODALITY):
            self.tower = PointTower(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[architecture],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Return `(num_query_tokens, hidden)` for each cloud, in their order."""
        points = kwargs.get("points")
        if points is None:
            return []
        return list(self.tower(points if isinstance(points, torch.Tensor) else torch.stack(list(points))))

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of hidden states."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a saved chat model; the loader refuses names that the model does not have."""
        own = ((body_name(name), tensor) for name, tensor in weights)
        named = ((f"tower.{name}" if is_of_tower(name) else name, tensor) for name, tensor in own)
        return AutoWeightsLoader(self).load_weights(named)
