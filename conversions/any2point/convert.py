"""Convert a released Any2Point checkpoint into a directory with adapter, tokenizer, head, processor and card."""

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from hf_any3d.conversions.any2point import VARIANTS, Variant, convert_state_dict
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.origin import is_stated, name_labels
from hf_any3d.conversions.saving import CONVERTED, check_encoder, check_frozen, stored_bytes, write_card
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.data.options import one_of
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.modeling.encoders import encoder_settings, find_family, load_encoder
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tuners import GuidedAdapterConfig
from hf_any3d.utils.atomic_files import new_directory
from hf_any3d.utils.markdown import code, inline

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
        ValueError: `variant` is none of `VARIANTS`, or the checkpoint has tensors that do not fit; names them.
        FileExistsError: `output` is there and not empty.
        FileNotFoundError: There is no such checkpoint.
    """
    program = VARIANTS[one_of("variant", variant, VARIANTS)]
    name = program.encoder_name if encoder is None else os.fspath(encoder)
    if name is None:
        raise ValueError(
            f"variant {variant}: the checkpoint lacks the encoder's table of positions, and no repository on the Hub "
            "offers this encoder; give --encoder DIR, made by `hf-any3d convert imagebind_huge.pth "
            "--output DIR` from the authors' own file"
        )
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint)
        with errors_about(checkpoint):
            frozen, trained = convert_state_dict(original, program)
        # The checkpoint lacks the encoder's table of positions, so the encoder is opened by its name.
        settings = encoder_settings(name, program.encoder_tower, revision)
        # The encoder that the caller names must be of the size that the program started from.
        encoder = settings["encoder_config"]
        check_encoder(name, encoder, program.encoder)
        # The programs build the encoder by themselves, with other epsilons than its published config.
        for key, value in program.encoder_changes.items():
            setattr(encoder, key, value)
        config = Any2PointConfig(**settings, **program.model)
        names = list(config.id2label.values())
        # The released programs are for one data set each.
        is_named = name_labels(config, names, [Path(checkpoint)], is_stated=is_stated("variant", variant))
        model = _model(checkpoint, config, program, frozen, trained)
        if store_encoder:
            config.set_part("encoder", None)  # an encoder without a name is saved with the adapter
        model.save_pretrained(os.fspath(directory))
        PointCloudProcessor(**program.processor).save_pretrained(directory)
        parameters = count_parameters(model)[0]
        subject = Subject.from_model(model)
        on_hub = not os.path.isdir(name)
        flags = ", ".join(code(f"{key}={value!r}") for key, value in program.model["released"].items())
        compared = f"{code(name)}, the source of the position table." if on_hub else "the given encoder."
        of_data = f" of {inline(program.dataset)}" if is_named else ""
        write_card(
            directory,
            Path(output).name,
            subject,
            f"This is a checkpoint in the layout of a program that the authors released, {CONVERTED} (variant "
            f"{code(variant)}). {parameters:,} parameters were trained.",
            {
                "What it computes": "The released program, with the quirks that its weights were trained with: "
                f"{flags}. The defaults of `Any2PointConfig` are the sound ones; these weights need these.",
                "Accuracy": f"Of their checkpoint the authors report {program.accuracy} % on the test set of "
                f"{inline(program.dataset)}. They picked the best epoch on that test set. The converted model was not "
                "evaluated.",
                "Source": f"{code(Path(checkpoint).name)}, sha256:{file_digest(Path(checkpoint))}. Every tensor of it "
                f"is accounted for. Its frozen layers equal those of {compared}",
            },
            files=[Path(checkpoint)],
            intro=f"Classifies 3D point clouds: {subject.config.num_labels} classes{of_data}.",
            base_model=name if on_hub else None,
        )
    return {
        "output": os.fspath(output),
        "encoder": name,
        "trained_parameters": parameters,
        "bytes": stored_bytes(output),
    }


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
    # Built as for training, so that PEFT names and stores the adapter as its own.
    model = get_peft_model(model, GuidedAdapterConfig(**program.adapter))
    expected = {key.removeprefix(_PEFT_PREFIX): value for key, value in get_peft_model_state_dict(model).items()}
    account(checkpoint, trained, expected)
    # The authors' numbers are float32; counters of norms are whole numbers in both.
    state = {}
    for key, value in trained.items():
        state[_PEFT_PREFIX + key] = value.to(expected[key].dtype)
    set_peft_model_state_dict(model, state)
    return model.eval()
