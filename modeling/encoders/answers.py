"""Facts about a checkpoint's encoders from its configuration alone."""

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from hf_any3d.modeling.encoders.registry import UnsupportedEncoder, find_family, select_tower, towers_of
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError


def encoder_facts(checkpoint: str, tower: str | None = None, revision: str | None = None) -> list[dict[str, str]]:
    """Return for each encoder of a checkpoint whether point tokens can pass its layers, and how, or why not.

    Args:
        checkpoint: Hub name or directory, or a `model_type` of transformers, whose usual settings are taken.
        tower: One encoder of a composite checkpoint; None for all.
        revision: Branch, tag or commit on the hub.

    Raises:
        OSError: The configuration is neither on the hub, nor in the cache or an installed package.
    """
    config = CONFIG_MAPPING[checkpoint]() if checkpoint in CONFIG_MAPPING else _config_of(checkpoint, revision)
    towers: list[str | None] = list(towers_of(config)) or [None]
    if tower is not None:
        towers = [tower]
    rows = []
    for name in towers:
        row = {"encoder": checkpoint, "type": config.model_type, "tower": name or "–"}
        try:
            inner = select_tower(config, name)
        except UnsupportedEncoder as error:
            rows.append({**row, "works": "no", "reason": str(error)})
            continue
        family = find_family(inner)
        row |= {"type": inner.model_type, "tower": family.tower, "works": "yes"}
        row |= {"layers": family.layers, "count": str(getattr(inner, "num_hidden_layers", "–"))}
        row |= {"width": str(inner.hidden_size), "positions": family.kind, "branch": family.branch}
        rows.append(row)
    return rows


def _config_of(checkpoint: str, revision: str | None) -> PreTrainedConfig:
    loading = {} if revision is None else {"revision": revision}
    try:
        hooks().check_name(checkpoint, loading)
        return AutoConfig.from_pretrained(checkpoint, **loading)
    except OSError as error:
        # Where models are built from it, an installed package may have it.
        try:
            directory, _ = hooks().find_weights(checkpoint, revision)
        except EncoderUnavailableError as unavailable:
            raise unavailable from None
        except OSError:
            raise error from None
    return AutoConfig.from_pretrained(directory)
