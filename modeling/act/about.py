"""ACT as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from typing import Any

from hf_any3d.modeling.records import (
    CLASSES,
    DATASET,
    HEADS,
    LICENSE,
    PATCHES,
    POINTS,
    RELEASES,
    REVISION,
    Converter,
    Method,
    ModelType,
    Program,
    Published,
    PublishedFile,
    Record,
    System,
    copy_of,
)

_READS = "A point transformer of {config.num_hidden_layers} blocks reads patches of points"
_POINT_MAE = Method("Point-MAE", "2203.06604", ("point_mae",), _READS)
_POINT_BERT = Method("Point-BERT", "2111.14819", ("point_bert",), _READS)
_POINT_MAE_WEIGHTS = System(
    title="Point-MAE",
    convert="convert_act",
    model_class="ActForPointCloudClassification",
    code_license="MIT",
    page="https://github.com/Pang-Yatian/Point-MAE",
    weights_license="MIT",
    license_source="the repository; nothing else is said of the weights, and the data sets have terms of their own",
)
_POINT_BERT_WEIGHTS = System(
    title="Point-BERT",
    convert="convert_act",
    model_class="ActForPointCloudClassification",
    code_license="MIT",
    page="https://github.com/Julie-tang00/Point-BERT",
    weights_license="MIT",
    license_source="the repository; nothing else is said of the weights, and the data sets have terms of their own",
)
_SIZE = {"hidden_size": 384, "num_hidden_layers": 12}


def _released(name: str, reported: str, model_class: str | None = None, **options: Any) -> PublishedFile:
    return PublishedFile(
        f"{name}.pth", _SIZE, options=options, model_class=model_class, commit="main", reported=reported
    )


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
            steps={"point-cloud-classification": "hf_any3d.tasks.classification.steps.ClassificationSteps"},
            is_point_encoder=True,
            captures_steps=True,
            # Its `embed_patches` embeds other patches of a cloud, which PPT's adapters read.
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
                "kind": "dvae, pretrain, cls, partseg, semseg, point_mae, point_bert, point_bert_cls or "
                "point_bert_partseg",
                "teacher": "the frozen teacher of stages I and II, to verify it and omit it from the result",
                "store_encoder": "also store the weights of a named teacher",
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
                "base": "the pretrained transformer, to verify it and omit it from the result",
                "pooling": "inputs of the head, such as cls,prompt_mean,max",
                "prompt_layer": "for IDPT, index of the block, from 0, before which the prompt is inserted",
                "prompt_groups": "for PPT, number of additional patches",
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
    published={
        # The tag of the release takes the place of a commit.
        "Pang-Yatian/Point-MAE": Published(
            _POINT_MAE_WEIGHTS,
            {
                "pretrain": _released("pretrain", "", "PointMAEForPreTraining", kind="point_mae"),
                "scanobjectnn": _released("scan_hardest", "accuracy 85.18", kind="cls", dataset="scanobjectnn"),
                "scanobjectnn-objbg": _released("scan_objbg", "accuracy 90.02", kind="cls", dataset="scanobjectnn"),
                "scanobjectnn-objonly": _released(
                    "scan_objonly", "accuracy 88.29", kind="cls", dataset="scanobjectnn"
                ),
                "modelnet40": _released("modelnet_1k", "accuracy 93.80 with voting", kind="cls", dataset="modelnet40"),
                "modelnet40-8k": _released(
                    "modelnet_8k", "accuracy 94.04", kind="cls", dataset="modelnet40", num_points=8192, num_groups=512
                ),
                "shapenetpart": _released(
                    "part_seg",
                    "instance mIoU 86.1",
                    "ActForPartSegmentation",
                    kind="partseg",
                    dataset="shapenetpart",
                ),
            },
            address=RELEASES,
        ),
        "torch-pointcloud/point-bert-base.dvae.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "ef1dfc2e5de122dea5a85c950ec863f93e5b940e",
            "",
            {},
            model_class="ActAutoencoder",
            kind="dvae",
        ),
        "torch-pointcloud/point-mae-base.pretrain.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "29921d9f3f4eb70ef01ade99a9534af7022c3648",
            "",
            _SIZE,
            model_class="PointMAEForPreTraining",
            kind="point_mae",
        ),
        "torch-pointcloud/point-bert-base.modelnet40.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "84d8db5edaba5cf45f77fc1485aa5a1f59d5fb0f",
            "accuracy 92.63",
            _SIZE,
            kind="point_bert_cls",
            dataset="modelnet40",
        ),
        "torch-pointcloud/point-bert-base.modelnet40-4k.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "659ad7361e9aa83641b5c9eb86a4aebe0dbc1974",
            "accuracy 92.99",
            _SIZE,
            kind="point_bert_cls",
            dataset="modelnet40",
            num_points=4096,
            num_groups=256,
        ),
        "torch-pointcloud/point-bert-base.modelnet40-8k.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "eb0e09720f8f25ddc759715c88b6a5e89a61aa50",
            "accuracy 93.07",
            _SIZE,
            kind="point_bert_cls",
            dataset="modelnet40",
            num_points=8192,
            num_groups=512,
        ),
        "torch-pointcloud/point-bert-base.scanobjectnn-objonly.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "08db072b75a497ca99cde4d2769a471d518559cc",
            "accuracy 88.12",
            _SIZE,
            kind="point_bert_cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-bert-base.scanobjectnn-objbg.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "5743a6dd88200b6f333634044bbb06b5960af935",
            "accuracy 87.44",
            _SIZE,
            kind="point_bert_cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-bert-base.scanobjectnn-hardest.xumin-yu": copy_of(
            _POINT_BERT_WEIGHTS,
            "c24e44cf95da3a813de37633dae52d99e6fcb31a",
            "accuracy 83.07",
            _SIZE,
            kind="point_bert_cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-mae-base.modelnet40.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "5e6a6427246e989894f1013a13ed60c49e9e560d",
            "accuracy 92.87",
            _SIZE,
            kind="cls",
            dataset="modelnet40",
        ),
        "torch-pointcloud/point-mae-base.modelnet40-8k.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "3ed87566031344c329c7583123e31d7a5ef4e727",
            "accuracy 93.35",
            _SIZE,
            kind="cls",
            dataset="modelnet40",
            num_points=8192,
            num_groups=512,
        ),
        "torch-pointcloud/point-mae-base.scanobjectnn-objbg.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "73ca8f4bedee155de72a7fbed4159aaa8d69f8db",
            "accuracy 90.19",
            _SIZE,
            kind="cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-mae-base.scanobjectnn-objonly.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "9c008ef507144f3816a31556c06ab6da47ca00fa",
            "accuracy 88.30",
            _SIZE,
            kind="cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-mae-base.scanobjectnn-hardest.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "de280eb1fbeb793baa540255e398cc7b2d5d2a77",
            "accuracy 85.05",
            _SIZE,
            kind="cls",
            dataset="scanobjectnn",
        ),
        "torch-pointcloud/point-mae-base.shapenetpart.yatian-pang": copy_of(
            _POINT_MAE_WEIGHTS,
            "7f283670e1997fdf385132a835c3d14ca159bbee",
            "instance mIoU 86.05",
            _SIZE,
            model_class="ActForPartSegmentation",
            kind="partseg",
            dataset="shapenetpart",
        ),
    },
)
