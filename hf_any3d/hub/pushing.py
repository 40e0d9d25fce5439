"""Push the folder of a saved model or of Parquet files to the hub, without what a training leaves beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_any3d.hub.names import refuse_push_if_offline

# Files of a training run that are not part of the model; names with an underscore or a dot in front are neither.
_NOT_PUSHED = ("checkpoint-*", "runs", "_*", "*.tmp", "optimizer.pt", "scheduler.pt", "rng_state*.pth")


@dataclass(frozen=True)
class Pushed:
    """The repository that was pushed to, as owner/name, its address, and the id of the commit."""

    repository: str
    url: str
    commit: str


def kind_of_folder(folder: Path) -> str:
    """Return "dataset" for Parquet files, alone or as `write_point_dataset` writes them, else "model"."""
    return "dataset" if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")) else "model"


def push_folder(
    folder: Path,
    repository: str,
    kind: str,
    prepare: Callable[[str], None] | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Push a folder; checkpoints and logs of a training, and hidden files, stay here.

    Args:
        folder: Directory of a saved model or of Parquet files.
        repository: Name on the hub, `owner/name`, which is created if there is none.
        kind: "model" or "dataset", see `kind_of_folder`.
        prepare: Called with the complete name of the repository before the upload.
        private: Create a private repository.
        revision: Branch to push to; it must exist.
        message: Message of the commit.

    Raises:
        OSError: The hub cannot be reached.
        HfHubHTTPError: The hub refuses, and says why.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    refuse_push_if_offline(repository)
    api = huggingface_hub.HfApi()
    # Hidden files stay here, except for scores, which the hub lists from this folder.
    hidden = [path.name for path in folder.glob(".*") if path.name != ".eval_results"]
    try:
        # None leaves an organization's default for new repositories as it is; False would make them public.
        url = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
        if prepare is not None:
            prepare(url.repo_id)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            repo_type=kind,
            revision=revision,
            commit_message=message or f"Push {folder.name}",
            # Patterns of files do not match those in a folder of that name.
            ignore_patterns=[pattern for name in (*_NOT_PUSHED, *hidden) for pattern in (name, f"{name}/**")],
        )
    except HfHubHTTPError:  # the hub has answered, and says what is wrong
        raise
    except HTTPError as error:
        text = f"{repository}: not pushed, as the Hub cannot be reached ({type(error).__name__})"
        raise OSError(text) from error
    return Pushed(url.repo_id, str(url), commit.oid)
