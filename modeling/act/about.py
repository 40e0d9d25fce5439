"""ACT as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import (
    CLASSES,
    DATASET,
    HEADS,
    LICENSE,
    PATCHES,
    POINTS,
    REVISION,
    Converter,
    Method,
    ModelType,
    Program,
    Record,
)

_READS = "A point transformer of {config.num_hidden_layers} blocks reads patches of points"
_POINT_MAE = Method("Point-MAE", "2203.06604", ("point_mae",), _READS)
_POINT_BERT = Method("Point-BERT", "2111.14819", ("point_bert",), _READS)

RECORD = Record(
    model_types={
        "act3d": ModelType(
            "ActConfig",
            "ActModel",
            {
                "point-cloud-classification": ("ActForPointCloudClassification",),
                "point-cloud-segmentation": (
                    "ActForSemanticSegmentation",
                    "ActForPartSegmentation",
                    "PointBERTForPartSegmentation",
                ),
                "pre-training": ("ActForPreTraining", "PointMAEForPreTraining", "PointBERTForPreTraining"),
            },
            part_heads=("ActForPartSegmentation", "PointBERTForPartSegmentation"),
            network="network.ActClassifierNetwork",
            steps={"point-cloud-classification": "classification.steps.ClassificationSteps"},
            is_point_encoder=True,
            captures_steps=True,
            # Its `embed_patches` embeds other patches of a cloud, which PPT's and APPT's adapters read.
            embeds_further_patches=True,
            exported_in=("features", "detector"),
            says="a point transformer",
            method=Method(
                "ACT",
                "2212.08320",
                ("act",),
                _READS,
            ),
            methods={
                "PointMAEForPreTraining": _POINT_MAE,
                "PointBERTForPreTraining": _POINT_BERT,
                "PointBERTForPartSegmentation": _POINT_BERT,
            },
            cards=dict.fromkeys(
                ("ActForPreTraining", "PointMAEForPreTraining", "PointBERTForPreTraining"), "distilled student"
            ),
            composition="student",
        ),
        "act3d_autoencoder": ModelType(
            "ActAutoencoderConfig",
            "ActAutoencoder",
            {"point-cloud-reconstruction": ("ActAutoencoder",)},
            has_parts=True,
            says="its teacher",
            method=Method("ACT", "2212.08320", ("act",)),
            composition="autoencoder",
        ),
    },
    converters={
        # Files do not show every setting: what they leave open are options.
        "convert_act": Converter(
            "act.convert",
            title="ACT",
            takes={
                "kind": "dvae, pretrain, cls, partseg or semseg",
                "teacher": "the frozen teacher of stages I and II, to compare it and leave it out",
                "store_encoder": "store a named teacher too",
                **REVISION,
                **CLASSES,
                **LICENSE,
                **DATASET,
                **PATCHES,
                **HEADS,
                **POINTS,
            },
            chosen_by="kind",
        ),
        "convert_act_adapter": Converter(
            "act.adapters",
            title="PointGST, IDPT, DAPT, PPT",
            takes={
                "base": "the pretrained transformer, to compare it and leave it out",
                "pooling": "what the head reads, such as cls,prompt_mean,max",
                "prompt_layer": "of IDPT: block, from 0, before which the prompt is",
                "prompt_groups": "of PPT: number of further patches",
                **REVISION,
                **CLASSES,
                **LICENSE,
                **DATASET,
                **PATCHES,
                **HEADS,
                **POINTS,
            },
        ),
    },
    programs=(
        # Classifiers of ACT with adapters in their blocks, by a tensor that no other method has.
        Program(
            "PointGST, IDPT, DAPT and PPT",
            "convert_act_adapter",
            {
                r"blocks\.blocks\.\d+\.gft_adapter\.": {"method": "pointgst"},
                r"(blocks\.cls\.|prompt_pos$)": {"method": "idpt"},
                r"blocks\.blocks\.\d+\.Adapter_MLP\.": {"method": "dapt"},
                r"blocks\.prompt_all_mlp\.": {"method": "ppt"},
            },
        ),
        # The same transformer under other names.
        Program("Point-MAE", "convert_act"),
        Program("Point-BERT", "convert_act"),
        # After the adapters, whose files hold the whole transformer too.
        Program("ACT", "convert_act", recognizer="act.names.kind_of"),
    ),
    refused={
        r"blocks\.layers\.\d+\.gft_adapter\.": "PointGST on PointGPT",
        # Two sizes of local graphs and no graph of all tokens, around another transformer than ACT's.
        r"(?!blocks\.).*gft_adapter\.": "PointGST with graphs of two sizes, in a detector or a completion network",
        r"blocks\.layers\.\d+\.adapt_mlp\.": "DAPT on PointGPT",
        r"(blocks\.dgcnn_cls\d+\.|prompt_cls_pos$)": "IDPT's part segmentation",
        r"cls_prompt_list\.": "VPT-deep in IDPT's program",
    },
)
