"""Record of segmentation: what it declares of itself."""

from hf_any3d.tasks.records import Task
from hf_any3d.tasks.segmentation.settings import SegmentationSettings

TASK = Task(
    name="point-cloud-segmentation",
    auto_class="AutoModelForPointCloudSegmentation",
    kind="a segmentation model",
    command="segment",
    pipeline="PointCloudSegmentationPipeline",
    settings=SegmentationSettings,
    answers="SegmentationAnswers",
    rows="segment",
    route="/v1/segment",
    question="What are its parts?",
    heading="Parts",
)
