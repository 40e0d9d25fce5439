"""The requests that huggingface_hub makes, and how the local hub answers them."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from tests.hub.descriptions import describe_commit, describe_file, describe_folder, describe_repository
from tests.hub.store import Commit, HubError, Repository, Store, StoredFile

USER = "me"
# The hub decides by .gitattributes and size; these are the endings a new repository has there that matter here.
_LFS_NAME = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|parquet|arrow|npy|npz|h5|ply|glb|png|zip|tfevents.*)$")
_LFS_SIZE = 10 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    url: str  # of the hub itself

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Response:
    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class UnknownRequestError(Exception):
    """Nothing here answers this: the stand-in would have to grow."""


Handler = Callable[..., object]
_ROUTES: list[tuple[str, re.Pattern, Handler]] = []
_PARTS = {
    "kind": "(?P<kind>model|dataset|space)",
    "folder": "(?:(?P<kind>dataset|space)s/)?",
    "name": "(?P<name>(?:[^/]+/)?[^/]+?)",
    "revision": "(?P<revision>[^/]+)",
    "path": "(?P<path>.+)",
    "label": "(?P<label>[^/]+)",
}


def _route(method: str, template: str) -> Callable[[Handler], Handler]:
    pattern = re.compile(re.sub(r"\{(\w+)\}", lambda part: _PARTS[part[1]], re.sub(r"\.", r"\.", template)))

    def add(handler: Handler) -> Handler:
        _ROUTES.append((method, pattern, handler))
        return handler

    return add


def answer(store: Store, request: Request) -> Response:
    """Finds who answers a request and lets them.

    Raises:
        HubError: the hub would refuse.
        UnknownRequestError: the stand-in doesn't know this request.
    """
    method = "GET" if request.method == "HEAD" else request.method
    for known, pattern, handler in _ROUTES:
        if known == method and (match := pattern.fullmatch(request.path)):
            parts = {name: unquote(value or "model") for name, value in match.groupdict().items()}
            found = handler(store, request, **parts)
            return found if isinstance(found, Response) else Response(json.dumps(found).encode())
    raise UnknownRequestError(f"{request.method} {request.path}")


@_route("GET", "/api/whoami-v2")
def _who_am_i(store: Store, request: Request) -> dict:
    token = {"displayName": "tests", "role": "write"}
    return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"accessToken": token}}


@_route("POST", "/api/validate-yaml")
def _validate_card(store: Store, request: Request) -> dict:
    return {"errors": [], "warnings": []}


@_route("POST", "/api/repos/create")
def _create(store: Store, request: Request) -> Response:
    wanted = request.json()
    kind = wanted.get("type") or "model"
    name = f"{wanted.get('organization') or USER}/{wanted['name']}"
    url = f"{request.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
    is_new = store.create(kind, name, private=wanted.get("private") is True or wanted.get("visibility") == "private")
    return Response(json.dumps({"url": url, "name": name, "id": name}).encode(), 200 if is_new else 409)


@_route("DELETE", "/api/repos/delete")
def _delete(store: Store, request: Request) -> dict:
    wanted = request.json()
    store.delete(wanted.get("type") or "model", f"{wanted.get('organization') or USER}/{wanted['name']}")
    return {}


@_route("GET", "/api/{kind}s/{name}/revision/{revision}")
def _describe_at(store: Store, request: Request, kind: str, name: str, revision: str) -> dict:
    repository = store.get(kind, name)
    return describe_repository(repository, repository.at(revision))


@_route("GET", "/api/{kind}s/{name}/tree/{revision}")
def _list_all(store: Store, request: Request, kind: str, name: str, revision: str) -> list[dict]:
    return describe_folder(store.get(kind, name).at(revision), "", _is_true(request, "recursive"))


@_route("GET", "/api/{kind}s/{name}/tree/{revision}/{path}")
def _list_folder(store: Store, request: Request, kind: str, name: str, revision: str, path: str) -> list[dict]:
    entries = describe_folder(store.get(kind, name).at(revision), path, _is_true(request, "recursive"))
    if not entries:
        raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
    return entries


@_route("POST", "/api/{kind}s/{name}/paths-info/{revision}")
def _describe_paths(store: Store, request: Request, kind: str, name: str, revision: str) -> list[dict]:
    is_json = "json" in request.headers.get("content-type", "")
    wanted = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
    commit = store.get(kind, name).at(revision)
    found = []
    for path in wanted:
        if path in commit.files:
            found.append(describe_file(path, commit.files[path]))
        elif describe_folder(commit, path, recursive=False):
            found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
    return found


@_route("GET", "/api/{kind}s/{name}/refs")
def _list_references(store: Store, request: Request, kind: str, name: str) -> dict:
    repository = store.get(kind, name)
    branches = [_reference("heads", branch, sha) for branch, sha in repository.branches.items()]
    tags = [_reference("tags", tag, sha) for tag, sha in repository.tags.items()]
    return {"branches": branches, "tags": tags, "converts": []}


def _reference(folder: str, label: str, sha: str) -> dict:
    return {"name": label, "ref": f"refs/{folder}/{label}", "targetCommit": sha}


@_route("GET", "/api/{kind}s/{name}/commits/{revision}")
def _list_commits(store: Store, request: Request, kind: str, name: str, revision: str) -> list[dict]:
    repository = store.get(kind, name)
    last = repository.commits.index(repository.at(revision))
    return [describe_commit(commit) for commit in reversed(repository.commits[: last + 1])]


@_route("POST", "/api/{kind}s/{name}/branch/{label}")
def _create_branch(store: Store, request: Request, kind: str, name: str, label: str) -> dict:
    repository = store.get(kind, name)
    if label in repository.branches:
        raise HubError(409, "BranchExists", f"Reference already exists: {label}")
    repository.branches[label] = repository.at(request.json().get("startingPoint") or "main").sha
    return {}


@_route("POST", "/api/{kind}s/{name}/tag/{revision}")
def _create_tag(store: Store, request: Request, kind: str, name: str, revision: str) -> dict:
    repository = store.get(kind, name)
    repository.tags[request.json()["tag"]] = repository.at(revision).sha
    return {}


@_route("POST", "/api/{kind}s/{name}/preupload/{revision}")
def _choose_upload_modes(store: Store, request: Request, kind: str, name: str, revision: str) -> dict:
    present = store.get(kind, name).at(revision).files
    modes = []
    for file in request.json()["files"]:
        path = file["path"]
        mode = "lfs" if _LFS_NAME.search(path) or file["size"] > _LFS_SIZE else "regular"
        oid = present[path].oid if path in present else None
        modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": modes}


@_route("POST", "/{folder}{name}.git/info/lfs/objects/batch")
def _offer_uploads(store: Store, request: Request, kind: str, name: str) -> Response:
    store.get(kind, name)
    objects = []
    for wanted in request.json()["objects"]:
        offer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in store.uploads:
            offer["actions"] = {"upload": {"href": f"{request.url}/uploads/{wanted['oid']}", "header": {}}}
        objects.append(offer)
    body = json.dumps({"transfer": "basic", "objects": objects}).encode()
    return Response(body, headers={"Content-Type": "application/vnd.git-lfs+json"})


@_route("PUT", "/uploads/{label}")
def _upload(store: Store, request: Request, label: str) -> dict:
    if hashlib.sha256(request.body).hexdigest() != label:
        raise HubError(400, "BadDigest", f"the bytes sent have another SHA-256 than {label}")
    store.uploads[label] = request.body
    return {}


@_route("POST", "/api/{kind}s/{name}/commit/{revision}")
def _commit(store: Store, request: Request, kind: str, name: str, revision: str) -> dict:
    repository = store.get(kind, name)
    if "create_pr" in request.query or revision not in repository.branches:
        raise UnknownRequestError(f"a commit to {revision!r} of {name}, or a pull request")
    head = repository.at(revision)
    steps = [json.loads(line) for line in request.body.splitlines()]
    header = next(step["value"] for step in steps if step["key"] == "header")
    if header.get("parentCommit") not in (None, head.sha):
        raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for step in steps:
        _apply(store, files, step["key"], step["value"])
    commit = repository.commit(files, header["summary"], revision)
    return {"success": True, "commitOid": commit.sha, "commitUrl": _commit_url(request, repository, commit)}


def _apply(store: Store, files: dict[str, StoredFile], key: str, value: dict) -> None:
    path = value.get("path", "")
    if key == "file":
        files[path] = StoredFile(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in store.uploads:
            raise HubError(400, "LfsPointerWithoutFile", f"{path}: its content was never uploaded")
        files[path] = StoredFile(store.uploads[value["oid"]], in_lfs=True)
    elif key == "deletedFile":
        files.pop(path)
    elif key == "deletedFolder":
        for inside in [other for other in files if other.startswith(path.rstrip("/") + "/")]:
            del files[inside]
    elif key != "header":
        raise UnknownRequestError(f"commit step {key!r}")


def _commit_url(request: Request, repository: Repository, commit: Commit) -> str:
    folder = "" if repository.kind == "model" else f"{repository.kind}s/"
    return f"{request.url}/{folder}{repository.name}/commit/{commit.sha}"


@_route("GET", "/{folder}{name}/resolve/{revision}/{path}")
def _download(store: Store, request: Request, kind: str, name: str, revision: str, path: str) -> Response:
    commit = store.get(kind, name).at(revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    file = commit.files.get(path)
    if file is None:
        return Response(b"", 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
    headers["ETag"] = f'"{file.oid}"'
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted or request.method == "HEAD":
        return Response(file.content, headers=headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(file.content) - 1), len(file.content) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(file.content)}"
    return Response(file.content[first : last + 1], 206, headers)


@_route("GET", "/api/{kind}s/{name}")
def _describe(store: Store, request: Request, kind: str, name: str) -> dict:
    repository = store.get(kind, name)
    return describe_repository(repository, repository.at("main"))


def _is_true(request: Request, name: str) -> bool:
    return request.query.get(name, [""])[0].lower() in ("1", "true")
