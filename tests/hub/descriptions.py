"""The local hub's descriptions of repositories, folders and files: the JSON that huggingface_hub reads."""

import yaml

from tests.hub.store import Commit, Repository, StoredFile

_DATE = "2026-01-01T00:00:00.000Z"


def describe_file(path: str, file: StoredFile) -> dict:
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_oid}
    if file.in_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def describe_folder(commit: Commit, folder: str, recursive: bool) -> list[dict]:
    start = f"{folder.strip('/')}/" if folder.strip("/") else ""
    files, folders = [], set()
    for path, file in commit.files.items():
        if not path.startswith(start):
            continue
        inner = path[len(start) :].split("/")
        folders.update(start + "/".join(inner[:depth]) for depth in range(1, len(inner)))
        if recursive or len(inner) == 1:
            files.append(describe_file(path, file))
    shown = sorted(path for path in folders if recursive or "/" not in path[len(start) :])
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in shown] + files


def describe_commit(commit: Commit) -> dict:
    return {"id": commit.sha, "title": commit.title, "message": "", "date": _DATE, "authors": [{"user": "me"}]}


def describe_repository(repository: Repository, commit: Commit) -> dict:
    card = _card_data(commit)
    return {
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.sha,
        "createdAt": _DATE,
        "lastModified": _DATE,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }


def _card_data(commit: Commit) -> dict:
    card = commit.files.get("README.md")
    parts = card.content.decode().split("---\n", 2) if card else []
    return yaml.safe_load(parts[1]) or {} if len(parts) == 3 and not parts[0] else {}
