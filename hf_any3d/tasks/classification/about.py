"""Record of classification: what it declares of itself."""

from hf_any3d.tasks.classification.settings import ClassificationSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="point-cloud-classification",
    auto_class="AutoModelForPointCloudClassification",
    kind="a classifier",
    command="predict",
    pipeline="PointCloudClassificationPipeline",
    settings=ClassificationSettings,
    answers="ClassificationAnswers",
    rows="predict",
    route="/v1/classify",
    question="What is this?",
    heading="Classes",
)
