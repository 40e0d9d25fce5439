"""Record of classification among labels of one's own: what it declares of itself."""

from hf_any3d.tasks.records import Task
from hf_any3d.tasks.zero_shot_classification.settings import ZeroShotClassificationSettings

TASK = Task(
    name="zero-shot-point-cloud-classification",
    auto_class="AutoModelForZeroShotPointCloudClassification",
    kind="a zero-shot classifier",
    command="zero-shot",
    pipeline="ZeroShotPointCloudClassificationPipeline",
    settings=ZeroShotClassificationSettings,
    answers="ZeroShotClassificationAnswers",
    rows="zero-shot",
    route="/v1/classify",
    question="Which of your words fits best?",
    heading="Words",
)
