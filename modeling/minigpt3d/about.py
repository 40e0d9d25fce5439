"""MiniGPT-3D as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    LICENSE,
    PATCHES,
    POINT_ENCODER,
    BorrowedPart,
    Converter,
    LanguageModel,
    Method,
    ModelType,
    Program,
    Published,
    PublishedFile,
    Record,
    System,
)

SYSTEM = System(
    title="MiniGPT-3D",
    convert="convert_minigpt3d",
    model_class="MiniGPT3DForConditionalGeneration",
    code_license="CC-BY-NC-SA-4.0",
    weights_license="CC-BY-NC-SA-4.0",
    license_source="the README of the program; parts have their own licenses",
    page="https://github.com/TangYuan96/MiniGPT-3D",
    non_commercial=True,
)
_PROGRAM = ("MiniGPT-3D", "convert_minigpt3d")
# A model is put together from these, whatever stage it is of.
_PARTS = ("point_encoder", "qformer", "language_model")
_WEIGHTS = "params_weight/"

RECORD = Record(
    model_types={
        "minigpt3d": ModelType(
            "MiniGPT3DConfig",
            "MiniGPT3DModel",
            {"point-cloud-text-to-text": ("MiniGPT3DForConditionalGeneration",)},
            processor="hf_any3d.processing.chat.MiniGPT3DProcessor",
            has_parts=True,
            says="a chat model",
            method=Method("MiniGPT-3D", "2405.01413", ("minigpt3d",)),
            composition="chat model",
        ),
    },
    language_models=(
        # Phi with three more norms in each layer, which transformers lacks
        LanguageModel("NormedPhiConfig", "NormedPhiModel", "NormedPhiForCausalLM", ("query_key_value", "dense")),
    ),
    converters={
        "convert_minigpt3d": Converter(
            "minigpt3d.convert",
            needs=_PARTS,
            of_parts="convert_minigpt3d_parts",
            title="MiniGPT-3D",
            takes={
                "tokenizer": "the tokenizer, if it is stored elsewhere",
                "stage": "training stage of the last file, if it is II or III; by default 3",
                "dtype": "float32 (the default), bfloat16 or float16",
                **LICENSE,
                **PATCHES,
            },
        ),
        "convert_minigpt3d_parts": Converter(
            "minigpt3d.convert",
            title="MiniGPT-3D",
            takes={"dtype": "float32 (the default), bfloat16 or float16", **PATCHES},
        ),
    },
    programs=(
        # Files of its training, by their place among each other; later ones hold tensors of earlier ones too.
        Program(
            *_PROGRAM,
            {
                r"query_router\.": {"order": 4},
                r"Qformer\..*\.lora_": {"order": 3},
                r"llama_(model|proj2?)\.": {"order": 0},
                r"point_2_Qformer_proj\.": {"order": 1},
            },
        ),
        # BLIP-2 has a Q-Former, but nothing that MiniGPT-3D trains.
        Program(*_PROGRAM, {r"Qformer\.bert\.": {}}, role="qformer"),
        Program(*_PROGRAM, {r"encoder\.first_conv\.": {}}, role="point_encoder"),
    ),
    # Parts as released or converted.
    directories={
        POINT_ENCODER: Program(*_PROGRAM, role="point_encoder"),
        "blip-2": Program(*_PROGRAM, role="qformer"),
        "phi": Program(*_PROGRAM, role="language_model"),
        "phi-msft": Program(*_PROGRAM, role="language_model"),
        "normed_phi": Program(*_PROGRAM, role="language_model"),
    },
    published={
        "YuanTang96/MiniGPT-3D": Published(
            SYSTEM,
            {
                None: PublishedFile(
                    f"{_WEIGHTS}MiniGPT_3D_stage_3/MiniGPT_3D_stage_3.pth",
                    parts={
                        "second_checkpoint": f"{_WEIGHTS}MiniGPT_3D_stage_4/MiniGPT_3D_stage_4.pth",
                        "point_encoder": f"{_WEIGHTS}pc_encoder/point_model.pth",
                        "language_model": f"{_WEIGHTS}Phi_2/",
                    },
                    # The authors' program loads BLIP-2's own file; this repository has the same model.
                    borrowed={"qformer": BorrowedPart("Salesforce/blip2-flan-t5-xxl", ("qformer.", "query_tokens"))},
                )
            },
        ),
    },
)
