"""Open a saved model as the pipeline of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import pipeline

from hf_any3d.hub.names import check_name
from hf_any3d.integration.registration import register
from hf_any3d.utils.atomic_files import read_json_object
from hf_any3d.utils.devices import check_device
from hf_any3d.utils.messages import model_errors


def open_pipeline(task: str, model: str, device: Any) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device if `device` is None.

    Raises:
        FileNotFoundError: If the name looks like a path, and nothing is there.
        ValueError: If there is no such device, or the processor of a directory does not name its class.
    """
    # `pipeline` finds only tasks and classes that are registered.
    register()
    check_device(device)
    check_name(model)
    file = Path(model, "preprocessor_config.json")
    settings = read_json_object(file) if file.is_file() else {}
    # Without the name of a class, transformers asks to run the code of its `auto_map`.
    if settings.get("auto_map") and not settings.get("feature_extractor_type"):
        expected = settings.get("processor_class") or "PointCloudProcessor"
        raise ValueError(f"{file} lacks feature_extractor_type; expected the name of its class, such as {expected!r}")
    open_task: Any = pipeline  # typed for tasks of transformers alone
    with model_errors(model):
        return open_task(task, model=model, device=device, trust_remote_code=False)
