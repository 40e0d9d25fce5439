"""Convert a released Any2Point checkpoint into a directory with adapter, tokenizer, head, processor and card."""

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from hf_any3d.conversions.any2point import VARIANTS, Variant, convert_state_dict
from hf_any3d.conversions.checkpoints import account, errors_about, read_checkpoint
from hf_any3d.conversions.model_cards import write_any2point_card
from hf_any3d.conversions.saving import check_frozen, new_directory, stored_bytes, wrong_fields
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.modeling.encoders import encoder_settings, find_family, load_encoder
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tuners import GuidedAdapterConfig

_PEFT_PREFIX = "base_model.model."


def convert_any2point(
    checkpoint: str | os.PathLike,
    variant: str,
    output: str | os.PathLike,
    *,
    encoder: str | os.PathLike | None = None,
    revision: str | None = None,
    store_encoder: bool = False,
) -> dict[str, Any]:
    """Convert a checkpoint of one of the six released programs.

    The checkpoint holds a copy of the frozen encoder's layers, but not its position table. So the encoder is loaded
    from the authors' source, its layers are compared with the copy, and only its name, revision and checksum are
    stored.

    Args:
        checkpoint: The authors' file.
        variant: One of `VARIANTS`: "clip-scan", "dinov2-modelnet" …
        output: Directory to create.
        encoder: Directory or hub name of the frozen encoder; None for the public one that the authors started from.
        revision: Branch, tag or commit of the encoder on the hub.
        store_encoder: Store the encoder in `output` too, in the folder `encoder`, instead of naming its repository.

    Returns:
        Facts by name: `output`, `encoder`, `trained_parameters`, `bytes`.

    Raises:
        ValueError: The variant is unknown, the checkpoint does not fit it, or the encoder is missing or another one.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}; expected one of {', '.join(VARIANTS)}")
    program = VARIANTS[variant]
    name = program.encoder_name if encoder is None else os.fspath(encoder)
    if name is None:
        raise ValueError(
            f"variant {variant}: the checkpoint lacks the encoder's table of positions, and no repository on the hub "
            "offers this encoder; give --encoder DIR, made by `hf-any3d convert imagebind_huge.pth "
            "--output DIR` from the authors' own file"
        )
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint)
        with errors_about(checkpoint):
            frozen, trained = convert_state_dict(original, program)
        # The checkpoint lacks the encoder's table of positions, so the encoder is opened by its name.
        config = _config(program, name, revision)
        model = _model(checkpoint, config, program, frozen, trained)
        if store_encoder:
            config.set_part("encoder", None)  # an encoder without a name is saved with the adapter
        model.save_pretrained(os.fspath(directory))
        PointCloudProcessor(**program.processor).save_pretrained(directory)
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        write_any2point_card(directory, Path(output).name, Path(checkpoint), variant, name, model)
    return {
        "output": os.fspath(output),
        "encoder": name,
        "trained_parameters": parameters,
        "bytes": stored_bytes(output),
    }


def _config(program: Variant, name: str, revision: str | None) -> Any2PointConfig:
    settings = encoder_settings(name, program.encoder_tower, revision)
    found = settings["encoder_config"]
    if wrong := wrong_fields(found, program.encoder):
        raise ValueError(f"encoder {name!r} does not fit the checkpoint: it has {'; '.join(wrong)}")
    for key, value in program.encoder_changes.items():
        setattr(found, key, value)
    return Any2PointConfig(**settings, **program.model)


def _model(
    checkpoint: str | os.PathLike,
    config: Any2PointConfig,
    program: Variant,
    frozen: dict[str, torch.Tensor],
    trained: dict[str, torch.Tensor],
) -> PeftModel:
    encoder = load_encoder(config)
    layers = find_family(encoder.config).layers + "."
    # A checkpoint holds a copy of the frozen layers. It equals those of the named encoder, so the name is enough.
    expected = {key: tensor for key, tensor in encoder.state_dict().items() if key.startswith(layers)}
    check_frozen(checkpoint, config.encoder_name_or_path, expected, frozen, "--encoder")
    model = Any2PointForPointCloudClassification(config, encoder)
    model = get_peft_model(model, GuidedAdapterConfig(**program.adapter))
    expected = {key.removeprefix(_PEFT_PREFIX): value for key, value in get_peft_model_state_dict(model).items()}
    account(checkpoint, trained, expected)
    state = {_PEFT_PREFIX + key: value.to(expected[key].dtype) for key, value in trained.items()}
    set_peft_model_state_dict(model, state)
    return model.eval()
