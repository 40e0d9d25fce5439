"""Record of reconstruction: what it declares of itself."""

from hf_any3d.tasks.reconstruction.settings import ReconstructionSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="point-cloud-reconstruction",
    auto_class="AutoModelForPointCloudReconstruction",
    kind="an autoencoder",
    command="reconstruct",
    pipeline="PointCloudReconstructionPipeline",
    settings=ReconstructionSettings,
    answers="ReconstructionAnswers",
    question="What does the autoencoder keep?",
    heading="Reconstruction",
)
