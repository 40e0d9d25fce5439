"""Clouds of a request before they are read: their types, their digests, and which field is wrong."""

import base64
from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.serving import ServeLimits
from hf_any3d.serving.inputs import Upload, upload_of
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.requests import MOST_VALUES, check_count, check_texts, parse_json

LIMITS = ServeLimits(points=60, characters=10, clouds=2)
ROWS = [[0.0, 0.5, 1.0]] * 2


def data_url(kind, data=b"x"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def refusal(function, *given) -> Refused:
    with pytest.raises(Refused) as caught:
        function(*given)
    return caught.value


@pytest.mark.parametrize(
    ("url", "given", "found"),
    [
        (data_url("model/ply"), None, "ply"),
        (data_url("model/ply"), "off", "off"),
        (data_url("model/x-PLY"), None, "ply"),
        (data_url("model/gltf-binary"), None, "glb"),
        (data_url("model/gltf+json"), None, "gltf"),
        (data_url("text/plain;charset=utf-8"), None, "txt"),
        (data_url("application/octet-stream"), None, None),
        ("data:;base64,eA==", None, None),
        ("upload:own.ply", None, None),
        ("upload:own.ply", "off", "off"),
        ("upload:typed", None, "stl"),
    ],
)
def test_the_type_of_a_file_is_given_or_that_of_its_url(url, given, found):
    files = {"own.ply": Upload("own.ply", b"x"), "typed": Upload("typed", b"x", "stl")}
    upload = upload_of({"url": url, "file_type": given}, "cloud", files)
    assert upload.file_type == found and upload.content == b"x"
    assert upload.name == (url.removeprefix("upload:") if url.startswith("upload:") else "cloud")


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"points": ROWS, "url": "data:"}, "cloud", "expected url with"),
        ({}, "cloud", "expected url with"),
        ({"url": "upload:a", "colors": ROWS}, "cloud", "expected url with"),
        ({"points": ROWS, "file_type": "ply"}, "cloud", "expected url with"),
        ({"points": []}, "cloud.points", "at least 1 item"),
        ({"points": ROWS, "colors": [[0, 1]]}, "cloud.colors.0.2", "Field required"),
        ({"url": "upload:b"}, "cloud.url", "no file 'b' in this request; there are: a"),
        ({"url": "ftp://b"}, "cloud.url", "this server does not download files"),
        ({"url": "data:model/ply,abc"}, "cloud.url", "expected data:"),
        ({"url": "data:model/ply;base64"}, "cloud.url", "expected data:"),
        ({"url": "data:model/ply;base64,a"}, "cloud.url", "expected data:"),
        ({"points": 5}, "cloud.points", "Input should be a valid list, not '5'"),
        ({"path": "x"}, "cloud.path", "cloud.path: unknown field"),
    ],
)
def test_the_field_that_is_wrong_is_named(given, param, message):
    error = refusal(upload_of, given, "cloud", {"a": Upload("a", b"")})
    assert (error.status, error.param) == (400, param) and message in error.message
    assert error.body()["error"] == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": param,
        "code": "400",
    }


def test_rows_of_numbers_are_a_cloud_with_colors_and_normals():
    upload = upload_of({"points": ROWS, "colors": ROWS, "normals": ROWS}, "cloud", {})
    found = upload.read(LIMITS)
    for values in (found.points, found.colors, found.normals):
        np.testing.assert_array_equal(values, ROWS)
    assert upload.content["points"].dtype == np.float64, "coordinates may be large"
    assert len(Upload("a", {"points": np.zeros((60, 3))}).read(LIMITS)) == 60
    error = refusal(Upload("a", {"points": np.zeros((61, 3))}).read, LIMITS)
    assert (error.param, error.message) == ("a", "a: 61 points; at most 60 are read")
    assert "what" in refusal(Upload("a.ply", b"x", "what").read, LIMITS).message


def test_numbers_at_a_limit_are_allowed():
    service = SimpleNamespace(limits=LIMITS)
    check_count(2, service)
    assert (error := refusal(check_count, 3, service)).status == 413 and error.param == "point_clouds"
    texts = {"labels": ["abc", ("de", 5)], "more": {"in": "fghij"}}
    check_texts(texts, service)
    error = refusal(check_texts, [texts, "k"], service)
    assert error.status == 413 and error.message == "the texts have 11 characters; expected at most 10"
    assert parse_json(b'{"a":[1,2,3]}', "x") == {"a": [1, 2, 3]}
    many = refusal(parse_json, b"," * (MOST_VALUES + 1), "x")  # before it is parsed
    assert many.status == 413 and refusal(parse_json, b"," * MOST_VALUES, "x").status == 400
    assert refusal(parse_json, b"[" * 3000, "x").message.startswith("x is no JSON object")
    assert refusal(parse_json, b"3", "x").message == "x is no JSON object (int)"
