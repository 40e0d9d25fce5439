"""Record of the extraction of features: what it declares of itself."""

from hf_any3d.tasks.features.settings import FeatureSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="point-cloud-feature-extraction",
    # A class of transformers, as a model without a head needs none of its own.
    auto_class="AutoModel",
    kind="a model without a head",
    command="features",
    pipeline="PointCloudFeatureExtractionPipeline",
    settings=FeatureSettings,
    answers="FeatureAnswers",
    # Models with these heads have features, too.
    also=("predict", "zero-shot", "segment", "detect"),
    rows="embed",
    route="/v1/features",
    question="Which shapes are similar?",
    heading="Most similar examples, by the cosine of their features",
)
