"""PatchAlign3D (arXiv 2601.02457): a point encoder whose patches are aligned with texts, for parts by name."""

from hf_any3d.modeling.patchalign3d.configuration_patchalign3d import PatchAlign3DConfig
from hf_any3d.modeling.patchalign3d.modeling_patchalign3d import (
    PatchAlign3DForPointCloudClassification,
    PatchAlign3DForPointCloudSegmentation,
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
    PatchAlign3DModel,
    PatchAlign3DPreTrainedModel,
)
from hf_any3d.modeling.point_encoders.part_texts import clean_label, part_prompts

__all__ = [
    "PatchAlign3DConfig",
    "PatchAlign3DForPointCloudClassification",
    "PatchAlign3DForPointCloudSegmentation",
    "PatchAlign3DForPreTraining",
    "PatchAlign3DForZeroShotPointCloudSegmentation",
    "PatchAlign3DModel",
    "PatchAlign3DPreTrainedModel",
    "clean_label",
    "part_prompts",
]
