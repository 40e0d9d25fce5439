"""`POST /v1/segment/file`: a file goes in, and comes back with the class of each point."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from pydantic import Field

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.labels import check_labels_fit, write_labels
from hf_any3d.serving.inputs import Upload
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.serving.tasks import SEGMENT_PATH, SETTINGS_OF
from hf_any3d.tasks.segmentation.labeled_copies import codes_in_file, labels_of_copy, labels_of_mesh
from hf_any3d.utils.messages import one_line

_TYPES = {"labels": "<i4", "scores": "<f4", "points": "<f4", "noise": "?"}


class FileSettings(SETTINGS_OF[SEGMENT_PATH]):  # pyright: ignore[reportGeneralTypeIssues]  made when it is imported
    """Settings of `/v1/segment/file`; `scores` adds the probability of each point's class to the file."""

    field: str | None = Field(None, description="Where the class goes, instead of the format's own place.")
    classes: str | None = Field(None, description="Codes of classes: 'ground=2,building=6,*=1'.")


class LabeledFile:
    """A file of a request, checked before the model runs, and the copy that is sent back."""

    # Settings of tasks are made fields when this is imported.
    def __init__(self, service: Service, upload: Upload, settings: Any):
        self.service = service
        self.upload = upload
        self.settings = settings
        self.kind = upload.file_type or upload.name.rpartition(".")[2].lower()
        pipe = service.pipe
        self.names = list(service.routes[SEGMENT_PATH].answers(settings).names)
        try:
            given = settings.classes, settings.field
            self.codes = codes_in_file(f"file.{self.kind}", self.names, pipe.model.config, *given)
            # An empty stream stands for the copy, which is of the file's own type.
            check_labels_fit(
                self._bytes(),
                io.BytesIO(),
                # Without codes, the numbers of the classes are written.
                codes=range(len(self.names)) if self.codes is None else self.codes,
                field=settings.field,
                scores=settings.scores,
                file_type=self.kind,
            )
        except (ValueError, ImportError) as error:
            raise Refused(400, f"{upload.name}: {one_line(error)}", param=upload.name) from error

    def _bytes(self) -> bytes:
        assert isinstance(self.upload.content, bytes), "files of forms are bytes"
        return self.upload.content

    def copy(self, cloud: PointCloudData, answer: dict[str, Any]) -> bytes:
        """Return the labeled copy; `answer` is that of `/v1/segment` in base64."""
        found = {
            name: np.frombuffer(base64.b64decode(answer[name]), kind)
            for name, kind in _TYPES.items()
            if name in answer
        }
        # Base64 has lost the shape, (samples, 3).
        found |= {"points": found["points"].reshape(-1, 3)} if cloud.is_mesh else {}
        if cloud.is_mesh:
            samples = found["points"].astype(np.float64)
            # Answers are in the coordinates of the file, the cloud is relative to its offset.
            if cloud.offset is not None:
                samples -= cloud.offset
            # From points on the surface to the vertices and faces of the file
            found = labels_of_mesh(cloud, samples.astype(cloud.points.dtype), found)
        output = io.BytesIO()
        write_labels(
            self._bytes(),
            output,
            labels_of_copy(found),
            scores=found["scores"] if self.settings.scores else None,
            face_labels=found.get("face_labels"),
            field=self.settings.field,
            codes=self.codes,
            file_type=self.kind,
        )
        return output.getvalue()
