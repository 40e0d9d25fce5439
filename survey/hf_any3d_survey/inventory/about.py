"""Record of the inventory of places: what it declares of itself."""

from hf_any3d.tasks.records import Task
from hf_any3d_survey.inventory.settings import InventorySettings

TASK = Task(
    name="point-cloud-inventory",
    auto_class="AutoModelForPointCloudSegmentation",
    kind="a model of tiles",
    command="inventory",
    pipeline="PointCloudInventoryPipeline",
    settings=InventorySettings,
    answers="InventoryAnswers",
    # Models of tiles are segmentation models.
    also=("segment",),
    models=("local_features",),
    route="/v1/inventory",
    question="What stands here?",
    heading="Trees and buildings, the highest first",
)
