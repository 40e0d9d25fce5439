"""SpatialLM as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    LICENSE,
    Converter,
    Method,
    ModelType,
    Program,
    Published,
    PublishedFile,
    Record,
    System,
)

SYSTEM = System(
    title="SpatialLM 1.1",
    convert="convert_spatiallm",
    model_class="SpatialLMForConditionalGeneration",
    code_license="Llama 3.2 Community License",
    weights_license="CC-BY-NC-4.0",
    license_source="the README of the program, for the point encoder; language models have their own licenses",
    page="https://github.com/manycore-research/SpatialLM",
    non_commercial=True,
)
# Weights may be in one file or several, so the repository is fetched as a folder.
_PUBLISHED = Published(SYSTEM, {None: PublishedFile("config.json", parts={"checkpoint": "/"})})

RECORD = Record(
    model_types={
        "spatiallm": ModelType(
            "SpatialLMConfig",
            "SpatialLMModel",
            # The last task is the one that commands and cards take: boxes are what most people want of a scan.
            {
                "point-cloud-text-to-text": ("SpatialLMForConditionalGeneration",),
                "point-cloud-object-detection": ("SpatialLMForConditionalGeneration",),
            },
            processor="hf_any3d.processing.rooms.SpatialLMProcessor",
            says="a language model that writes the layout of a room",
            method=Method("SpatialLM", "2506.07491", ("spatiallm",)),
            cards={"SpatialLMForConditionalGeneration": "room layout"},
            composition="layout writer",
        ),
    },
    converters={
        "convert_spatiallm": Converter(
            "spatiallm.convert",
            title="SpatialLM",
            takes={
                "tokenizer": "the tokenizer, if it is stored elsewhere",
                "dtype": "float32, bfloat16 or float16; by default that of the files",
                "code_template": "code_template.txt used for training",
                **LICENSE,
            },
        ),
    },
    programs=(Program("SpatialLM", "convert_spatiallm", {r"point_backbone\.": {}}),),
    directories={
        # Types in the configs of the authors' folders, which differ by the language model.
        "spatiallm_qwen": Program("SpatialLM", "convert_spatiallm"),
        "spatiallm_llama": Program("SpatialLM", "convert_spatiallm"),
    },
    published={
        "manycore-research/SpatialLM1.1-Qwen-0.5B": _PUBLISHED,
        "manycore-research/SpatialLM1.1-Llama-1B": _PUBLISHED,
        "ysmao/SpatialLM1.1-Qwen-0.5B-ARKitScenes-SFT": _PUBLISHED,
        "ysmao/SpatialLM1.1-Qwen-0.5B-Structured3D-SFT": _PUBLISHED,
    },
)
