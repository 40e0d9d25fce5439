"""Record of the search for parts by their names: what it declares of itself."""

from hf_any3d.tasks.parts_by_name.settings import PartsByNameSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="zero-shot-point-cloud-segmentation",
    auto_class="AutoModelForZeroShotPointCloudSegmentation",
    kind="a segmentation model for parts by name",
    command="segment",
    pipeline="ZeroShotPointCloudSegmentationPipeline",
    settings=PartsByNameSettings,
    answers="PartsByNameAnswers",
    rows="segment",
    route="/v1/segment",
    question="Where are the parts that your words name?",
    heading="Parts",
)
