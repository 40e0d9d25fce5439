"""Any2Point as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import CLASSES, LICENSE, REVISION, Converter, Method, ModelType, Program, Record

RECORD = Record(
    model_types={
        "any2point": ModelType(
            "Any2PointConfig",
            "Any2PointModel",
            {
                "point-cloud-classification": ("Any2PointForPointCloudClassification",),
                "point-cloud-segmentation": ("Any2PointForSemanticSegmentation", "Any2PointForPartSegmentation"),
                "zero-shot-point-cloud-classification": ("Any2PointForZeroShotPointCloudClassification",),
            },
            part_heads=("Any2PointForPartSegmentation",),
            # Training starts from any encoder that a family describes.
            has_frozen_encoder=True,
            has_parts=True,
            captures_steps=True,
            exported=("Any2PointForPointCloudClassification",),
            exported_in=("features",),
            says="a frozen encoder of another modality",
            method=Method("Any2Point", "2404.07989", ("any2point",)),
            cards={"Any2PointForZeroShotPointCloudClassification": "zero-shot from some classes"},
            composition="frozen encoder",
        ),
        # A control beside the method: how much of a result is the tokenizer's.
        "point_tokenizer": ModelType(
            "PointTokenizerConfig",
            "PointTokenizerModel",
            {"point-cloud-classification": ("PointTokenizerForPointCloudClassification",)},
            exported=("PointTokenizerForPointCloudClassification",),
            says="its tokenizer and head alone",
            method=Method(
                "Any2Point",
                "2404.07989",
                ("any2point", "control"),
                "A control: the tokenizer and head of an Any2Point model without its encoder",
            ),
        ),
    },
    converters={
        "convert_any2point": Converter(
            "any2point.convert",
            title="Any2Point",
            takes={
                "variant": "model variant, such as clip-scan or dinov2-modelnet",
                "encoder": "the frozen encoder, if it differs from the authors'",
                "store_encoder": "also store the weights of a named encoder",
                **CLASSES,
                **LICENSE,
                **REVISION,
            },
            chosen_by="variant",
        )
    },
    # Six programs, told apart by names that only one of them has.
    programs=(Program("Any2Point", "convert_any2point", recognizer="any2point.variants.variant_of"),),
)
