"""Local features as the rest of the package knows them; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import Method, ModelType, Record

RECORD = Record(
    model_types={
        "local_features": ModelType(
            "LocalFeaturesConfig",
            "LocalFeaturesModel",
            {"point-cloud-segmentation": ("LocalFeaturesForPointCloudSegmentation",)},
            processor="hf_any3d_survey.processor.LocalFeaturesProcessor",
            network="network.LocalFeaturesNetwork",
            steps={
                "point-cloud-segmentation": "hf_any3d_survey.segmentation.steps.LocalFeaturesSteps",
                "point-cloud-inventory": "hf_any3d_survey.inventory.steps.InventorySteps",
            },
            says="a small network on the neighborhood of each point of a scan",
            method=Method(
                "Local features",
                None,
                ("local_features",),
                "An ensemble of {config.members} small networks with {config.hidden_sizes} hidden units "
                "classifies {config.num_features} features of each point's neighborhood",
            ),
            cards={"LocalFeaturesForPointCloudSegmentation": "surroundings of points"},
        ),
    },
)
