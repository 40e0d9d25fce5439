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
            says="a small network on the surroundings of each point of a scan",
            method=Method(
                "Local features",
                None,
                ("local_features",),
                "A small network of {config.members} times {config.hidden_sizes} units reads {config.num_features} "
                "numbers of each point's surroundings",
            ),
            cards={"LocalFeaturesForPointCloudSegmentation": "surroundings of points"},
        ),
    },
)
