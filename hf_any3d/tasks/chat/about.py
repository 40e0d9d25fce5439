"""Record of conversation: what it declares of itself."""

from hf_any3d.tasks.chat.settings import ChatSettings
from hf_any3d.tasks.records import Task

TASK = Task(
    name="point-cloud-text-to-text",
    auto_class="AutoModelForPointCloudTextToText",
    kind="a chat model",
    command="chat",
    pipeline="PointCloudTextToTextPipeline",
    settings=ChatSettings,
    answers="ChatAnswers",
    question="Talk about point clouds",
)
