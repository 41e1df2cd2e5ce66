"""Where the weights of a model are found, and that they are what the index says.

In this order: inside the package, in the Hugging Face Hub's cache, on the Hub.
"""

import hashlib
import os
import re
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors as hub_errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from qzoo.errors import WeightsError
from qzoo.index import FOLDER
from qzoo.provenance import Provenance

ORGANISATION = os.environ.get("QZOO_HUB_ORGANISATION", "quadnets")
"""Whose repositories on the Hub hold the weights."""

NETWORK_ERRORS: tuple[type[BaseException], ...] = hub_errors.HfHubHTTPError.__bases__
"""What the Hub's client lets through of its HTTP library, whichever that is, and ``OSError``."""

HUB_FILE = "model.safetensors"
"""The one file of a repository that holds weights."""


def hub_id(provenance: Provenance) -> str:
    """The Hub's full identifier of these weights."""
    return f"{ORGANISATION}/{provenance.name}"


def weights_file(provenance: Provenance, cache_dir: str | Path | None = None) -> Path:
    """The file of these weights, downloaded where need be, its size and sha256 checked.

    Args:
        provenance: a row of the index.
        cache_dir: the Hub's cache; its default is where ``HF_HOME`` says.

    Raises :class:`qzoo.WeightsError` for a file that is not what the row says, which does not stay
    in the cache, and where the Hub cannot be reached or has no such file.
    """
    own = FOLDER / provenance.filename
    if own.exists():
        try:
            provenance.check(own)
        except WeightsError as error:
            raise WeightsError(f"{error}: install quadnets-zoo again") from None
        return own
    repository = hub_id(provenance)
    check_repository(repository)
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE, cache_dir=cache_dir)
    if isinstance(cached, str):
        path = Path(cached)
        if provenance.describes(path):
            return path
        if not _is_whole(path):  # else it is of another version, and the Hub may have this one
            return _checked(provenance, path)
    return _checked(provenance, download(repository, HUB_FILE, cache_dir))


def location(provenance: Provenance) -> str:
    """Where :func:`weights_file` would find these weights."""
    if (FOLDER / provenance.filename).exists():
        return "in the package"
    cached = huggingface_hub.try_to_load_from_cache(hub_id(provenance), HUB_FILE)
    return "in the cache" if isinstance(cached, str) else f"on the Hub, {hub_id(provenance)}"


def check_repository(repository: str) -> None:
    """Raise :class:`qzoo.WeightsError` for what cannot be the name of a repository."""
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError:
        raise WeightsError(
            f"{repository!r} is no name of a repository on the Hub: give organisation/name; ours "
            "come from QZOO_HUB_ORGANISATION"
        ) from None


def download(
    repository: str, file: str, cache_dir: str | Path | None = None, revision: str | None = None
) -> Path:
    """A file of a repository, as it lies in the cache after this call.

    Raises :class:`qzoo.WeightsError` where it cannot be had.
    """
    check_repository(repository)
    endpoint = huggingface_hub.constants.ENDPOINT
    what = f"{repository} is not in the cache"
    try:
        path = huggingface_hub.hf_hub_download(
            repository,
            file,
            revision=revision,
            cache_dir=cache_dir,
            library_name="qzoo",
            library_version=version("quadnets-zoo"),
        )
    except hub_errors.LocalEntryNotFoundError as error:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise WeightsError(
                f"{what}, and HF_HUB_OFFLINE forbids to download it: unset it, or copy the cache "
                "of a machine that has it"
            ) from None
        if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
            raise WeightsError(f"{what}, and {answered(error.__cause__)}") from None
        raise WeightsError(
            f"{what}, and the Hub at {endpoint} cannot be reached: try again later, or copy the "
            "cache of a machine that has it"
        ) from None
    except hub_errors.RemoteEntryNotFoundError:
        raise WeightsError(
            f"{repository} on the Hub at {endpoint} has no {file}, and nothing else is opened: ask "
            "who published it for that file"
        ) from None
    except hub_errors.HfHubHTTPError as error:
        raise WeightsError(f"{what}, and {answered(error)}") from None
    except NETWORK_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise WeightsError(
                f"{what}, which cannot be written ({error.strerror}: {error.filename}): make room "
                "there, or choose another place by HF_HOME or cache_dir="
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{what}, and its download from {endpoint} broke off ({reason}): try again"
        ) from None
    return Path(path)


def answered(error: hub_errors.HfHubHTTPError) -> str:
    """What the Hub answered, and the way out."""
    status = error.response.status_code
    said = f"the Hub at {huggingface_hub.constants.ENDPOINT} answered {status}"
    if isinstance(error, hub_errors.GatedRepoError):
        return f"{said}: accept the repository's terms on its page, and log in with `hf auth login`"
    if isinstance(error, hub_errors.RepositoryNotFoundError):  # 401, too, where nobody logged in
        return (
            f"{said}: it has no such repository, or not for everybody; check the name, or log in "
            "with `hf auth login`"
        )
    if status in (401, 403):
        return (
            f"{said}: the token is not one that may; give another by `hf auth login` or HF_TOKEN, "
            "or another organisation by QZOO_HUB_ORGANISATION"
        )
    return f"{said}: try again later"


def check_download(path: Path) -> None:
    """Compare a file in the cache with the sha256 by which the Hub announced it.

    Raises :class:`qzoo.WeightsError` where they differ; the file does not stay.
    """
    announced = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", announced) and not _is_whole(path):
        raise WeightsError(f"{path} is not what the Hub announced: {_removed(path)}")


def _checked(provenance: Provenance, path: Path) -> Path:
    """A file of the cache, if it is these weights."""
    try:
        provenance.check(path)
    except WeightsError as error:
        raise WeightsError(f"{error}: {_removed(path)}") from None
    return path


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache is as it was downloaded: its blob is named by its sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == path.resolve().name


def _removed(path: Path) -> str:
    """Remove a cached file with what it points to, and say so; or say what stood in the way."""
    try:
        for part in {path.resolve(), path}:
            part.unlink(missing_ok=True)
    except OSError as error:
        return f"remove it, which failed here ({error.strerror}), and ask again"
    return (
        "it was removed; ask again to download it anew, and if that does not help, the Hub has "
        "other weights than this version of quadnets-zoo knows: update it"
    )
