"""Store of the local hub: repositories with their whole history, in memory."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

_count = itertools.count()


class HubError(Exception):
    """A refusal in the hub's own words: status, the code that huggingface_hub reads, and a text."""

    def __init__(self, status: int, code: str, text: str):
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    in_lfs: bool = False

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.in_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    sha: str
    files: Mapping[str, StoredFile]
    title: str


@dataclass
class Repository:
    kind: str
    name: str
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def __post_init__(self):
        self.branches["main"] = ""
        self.commit({}, "initial commit")

    def commit(self, files: Mapping[str, StoredFile], title: str, branch: str = "main") -> Commit:
        """Puts a new state of all files on top of a branch; earlier commits stay as they are."""
        # The count makes it unique: equal files pushed twice are two commits, in any repository.
        seed = f"{self.kind} {self.name} {self.branches[branch]} {title} {next(_count)}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), dict(files), title)
        self.commits.append(commit)
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        """Finds what a branch, a tag or a commit stands for."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Store:
    """All repositories, by kind ("model", "dataset" or "space") and name."""

    def __init__(self):
        self._repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}

    def create(self, kind: str, name: str, private: bool = False) -> bool:
        """Says whether the repository is a new one; one that is there stays as it is."""
        if (kind, name) in self._repositories:
            return False
        self._repositories[kind, name] = Repository(kind, name, private=private)
        return True

    def get(self, kind: str, name: str) -> Repository:
        try:
            return self._repositories[kind, name]
        except KeyError:
            raise HubError(404, "RepoNotFound", "Repository not found") from None

    def delete(self, kind: str, name: str) -> None:
        del self._repositories[kind, self.get(kind, name).name]
