"""Services of tiny models, and their clients in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData, point_cloud_bytes
from hf_any3d.serving import ServeLimits
from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.tiny_detr3d import BOX_FRAME, answering_detector
from tests.tiny_encoders import tiny_model, tiny_part_model, with_large_logits
from tests.tiny_text_towers import tiny_zero_shot_model

POINTS = 48
CLASSIFY, ZERO_SHOT = "point-cloud-classification", "zero-shot-point-cloud-classification"
SEGMENT, CHAT = "point-cloud-segmentation", "point-cloud-text-to-text"
DETECT = "point-cloud-object-detection"

MODELS = {
    CLASSIFY: lambda: with_large_logits(tiny_model(id2label={0: "chair", 1: "lamp", 2: "sofa"})),
    ZERO_SHOT: tiny_zero_shot_model,
    DETECT: answering_detector,
    SEGMENT: lambda: tiny_part_model(id2label=dict(enumerate(["top", "legs", "foot", "pole", "shade"]))),
}
LIMITS = ServeLimits(body_bytes=200_000, points=2000, clouds=3, queue=4, batch=4, wait=0.05, seconds=20, new_tokens=8)


@pytest.fixture(scope="session")
def pipes():
    """A function from a task to a pipeline of a tiny model."""
    made = {}

    def pipe(task: str):
        if task not in made:
            torch.manual_seed(0)
            processor = PointCloudProcessor(num_points=POINTS, **(BOX_FRAME if task == DETECT else {}))
            made[task] = (
                tiny_chat_pipeline()
                if task == CHAT
                else pipeline(task, model=MODELS[task](), feature_extractor=processor)
            )
        return made[task]

    return pipe


@pytest.fixture
def client(pipes):
    """A function that starts a service and returns its client, which has the service as `service`."""
    started = []

    def start(task: str = CLASSIFY, limits: ServeLimits = LIMITS, **settings) -> TestClient:
        service = Service("tiny", task, pipes(task), limits, **settings)
        client = TestClient(create_app(service), raise_server_exceptions=False)
        client.__enter__()
        client.service = service
        started.append(client)
        return client

    yield start
    for one in started:
        one.__exit__(None, None, None)


def ply(seed: int = 0, points: int = 60, **fields) -> bytes:
    """A cloud as a file."""
    return point_cloud_bytes(PointCloudData(np.random.default_rng(seed).normal(size=(points, 3)), **fields), "ply")


def files(*seeds: int, **settings) -> dict:
    """Arguments of `post` for files of these seeds."""
    return {"files": [("file", (f"{seed}.ply", ply(seed))) for seed in seeds], "data": settings}


@contextmanager
def held(service: Service) -> Iterator[list[int]]:
    """Hold the model until the block ends; yields the sizes of batches that it began."""
    released, sizes, run = threading.Event(), [], service.batcher.run

    def wait(key, contents):
        sizes.append(len(contents))
        assert released.wait(20)
        return run(key, contents)

    service.batcher.run = wait
    try:
        yield sizes
    finally:
        released.set()
        service.batcher.run = run
