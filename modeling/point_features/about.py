"""Point features as the rest of the package knows them; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import Method, ModelType, Record

RECORD = Record(
    model_types={
        "point_features": ModelType(
            "PointFeaturesConfig",
            "PointFeaturesModel",
            {"point-cloud-classification": ("PointFeaturesForPointCloudClassification",)},
            has_parts=True,
            exported=("PointFeaturesForPointCloudClassification",),
            says="computed features, with those of a frozen encoder if one is named",
            method=Method("Point features", None, ("point_features",), "{config.described_features}"),
            composition="features",
        ),
    },
)
