"""The four training stages of MiniGPT-3D: the parameters that each trains and saves."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

STAGES = (1, 2, 3, 4)


def stage_names(model: PreTrainedModel, stage: int) -> list[str]:
    """Return the names of the parameters that a training stage trains, in `model.base_model`; see `stage_groups`."""
    return [name for names in stage_groups(model, stage).values() for name in names]


def stage_groups(model: PreTrainedModel, stage: int) -> dict[str, list[str]]:
    """Return the names of the parameters that a training stage trains, in `model.base_model`, by group.

    Stage 1 trains the point MLP. Stages 2 and 3 train it, the first set of queries, the projector, LoRA of Q-Former
    and language model, and the weights, not the biases, of the norms in the Q-Former's layers and of all norms in the
    language model. Stage 4 trains all query sets and the router.

    Source: MiniGPT-3D, Sec. 3.3, and the released programs, which train the queries in stages 2 and 3 too.
    """
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r}; expected one of {', '.join(map(str, STAGES))}")
    body = model.base_model
    # Stages 2 and 3 go on training it.
    point_mlp = {"point_mlp": _names_with_prefix(body, "bridge.point_mlp.")}
    if stage == 1:
        return point_mlp
    if stage == 4:
        return {"query_experts": _names_with_prefix(body, "bridge.experts.")}
    for field in ("qformer_lora", "text_lora"):
        if getattr(model.config, field) is None:
            raise ValueError(f"{field}=None, but stage {stage} trains it; expected arguments of peft.LoraConfig")
    # Not the norm of the Q-Former's input, which stays frozen as released.
    qformer = "bridge.qformer.encoder."
    text = "language_model."
    return {
        **point_mlp,
        "queries": ["bridge.experts.queries.0"],
        "projector": _names_with_prefix(body, "bridge.projector."),
        "qformer_lora": _lora(body, qformer),
        "qformer_norms": _norm_weights(body, qformer),
        "text_lora": _lora(body, text),
        "text_norms": _norm_weights(body, text),
    }


def trained_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that the stages up to `config.stage` train, in `model.base_model`."""
    config: Any = model.config
    trained: dict[str, None] = {}
    for stage in range(1, (config.stage or 0) + 1):
        # `stage_names` refuses stages 2 and 3 of a model without LoRA, such as one whose LoRA is merged.
        if stage in (1, 4) or None not in (config.qformer_lora, config.text_lora):
            trained |= dict.fromkeys(stage_names(model, stage))
    return list(trained)


def set_stage(model: PreTrainedModel, stage: int, left_frozen: Sequence[str] = ()) -> list[str]:
    """Prepare a model for a training stage: freeze all other parameters, and use query experts in stage 4 only.

    The config records the stage.

    Args:
        model: The model.
        stage: Number of the stage.
        left_frozen: Groups of `stage_groups` that stay frozen nevertheless, to measure what training them is worth.

    Returns:
        The names of the trained parameters.
    """
    groups = stage_groups(model, stage)
    unknown = [name for name in left_frozen if name not in groups]
    if unknown:
        raise ValueError(
            f"left_frozen has {unknown[0]!r}; expected some of {', '.join(groups)}, as stage {stage} trains"
        )
    names = [name for group, names in groups.items() if group not in left_frozen for name in names]
    # Everything, as a stage may follow another one whose parts it does not train.
    model.requires_grad_(False)
    for name in names:
        model.base_model.get_parameter(name).requires_grad_(True)
    config: Any = model.config
    config.use_query_experts = stage == 4
    config.stage = stage
    return names


def _names_with_prefix(model: nn.Module, prefix: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(prefix)]


def _lora(model: nn.Module, prefix: str) -> list[str]:
    return [name for name in _names_with_prefix(model, prefix) if ".low_rank_" in name]


def _norm_weights(model: nn.Module, prefix: str) -> list[str]:
    # By the name of the class: norms of language models share no base class.
    norms = {name for name, module in model.named_modules() if "Norm" in type(module).__name__}
    return [
        name
        for name in _names_with_prefix(model, prefix)
        if name.endswith(".weight") and name.removesuffix(".weight") in norms
    ]
