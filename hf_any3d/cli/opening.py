"""Opening models for commands: `import hf_any3d` leaves registering them to the command that needs them."""

from __future__ import annotations

from typing import Any

from hf_any3d.messages import opened


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """A pipeline around a directory or hub repository, on the fastest device unless one is named."""
    from transformers import pipeline

    from hf_any3d.registration import register

    register()
    with opened(model):
        return pipeline(task, model=model, device=device, trust_remote_code=False)


def open_chat(model: str, device: str | None, template: str | None) -> Any:
    """A pipeline that talks about point clouds.

    Raises:
        ValueError: If its processor has no template of this name.
    """
    pipe = open_pipeline("point-cloud-text-to-text", model, device)
    with opened(model):  # a wrong name is told now
        pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe
