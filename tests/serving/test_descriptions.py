"""How the API describes requests that are read by hand."""

from typing import Literal

from pydantic import Field

from hf_any3d.serving.app import _described
from hf_any3d.serving.tasks import Settings


class Few(Settings):
    """Settings of a request."""

    top_k: int = Field(5, description="Number of labels.")
    up_axis: Literal["x", "y"] = "y"


def test_a_request_is_json_with_clouds_or_a_form_with_files():
    rows = {"type": "array", "items": {"type": "array"}}
    cloud = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "data:…;base64,…"},
            "file_type": {"type": "string"},
            "points": rows,
            "colors": rows,
            "normals": rows,
        },
    }
    own = {
        "top_k": {"type": "integer", "default": 5, "title": "Top K", "description": "Number of labels."},
        "up_axis": {"type": "string", "enum": ["x", "y"], "default": "y", "title": "Up Axis"},
    }
    clouds = {"point_clouds": {"type": "array", "items": cloud}}
    files = {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    assert _described(Few) == {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object", "properties": clouds | own}},
                "multipart/form-data": {"schema": {"type": "object", "properties": files | own}},
            },
        }
    }
