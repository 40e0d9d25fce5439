"""Steps before and after the policy; LeRobot finds this function by its name."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_any3d.configuration_any3d import OBS_POINTS, Any3DConfig


def make_any3d_pre_post_processors(
    config: Any3DConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Return the pipelines that normalize states and actions; clouds stay as the encoder was trained with them."""
    norms = {"norm_map": config.normalization_mapping, "stats": dataset_stats}
    features = {name: one for name, one in (config.input_features or {}).items() if name != OBS_POINTS}
    actions = config.output_features or {}
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
        NormalizerProcessorStep(features={**features, **actions}, **norms),
    ]
    after = [UnnormalizerProcessorStep(features=actions, **norms), DeviceProcessorStep(device="cpu")]
    return (
        PolicyProcessorPipeline(steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline(
            steps=after,
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
