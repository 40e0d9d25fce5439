"""Record of the search for objects: what it declares of itself."""

from hf_any3d.tasks.detection.settings import DetectionSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="point-cloud-object-detection",
    auto_class="AutoModelForPointCloudObjectDetection",
    kind="a detector",
    command="detect",
    pipeline="PointCloudObjectDetectionPipeline",
    settings=DetectionSettings,
    answers="DetectionAnswers",
    rows="detect",
    route="/v1/detect",
    question="Where are the objects?",
    heading="Objects",
)
