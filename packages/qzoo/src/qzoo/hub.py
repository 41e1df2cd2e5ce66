"""Where the weights of a model are found, and that they are what the index says.

In this order: inside the package, in the Hugging Face Hub's cache, on the Hub.
"""

import os
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors as hub_errors

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
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE, cache_dir=cache_dir)
    path = Path(cached) if isinstance(cached, str) else download(repository, HUB_FILE, cache_dir)
    try:
        provenance.check(path)
    except WeightsError as error:
        after = (
            "it was removed; ask again to download it anew, and if that does not help, the Hub has "
            "other weights than this version of quadnets-zoo knows: update it"
        )
        raise WeightsError(f"{error}: {_removed(path) or after}") from None
    return path


def is_at_hand(provenance: Provenance) -> str | None:
    """``"in the package"`` or ``"in the cache"`` where no download is needed, else None."""
    if (FOLDER / provenance.filename).exists():
        return "in the package"
    cached = huggingface_hub.try_to_load_from_cache(hub_id(provenance), HUB_FILE)
    return "in the cache" if isinstance(cached, str) else None


def download(
    repository: str, file: str, cache_dir: str | Path | None = None, revision: str | None = None
) -> Path:
    """A file of a repository, as it lies in the cache after this call.

    Raises :class:`qzoo.WeightsError` where it cannot be had.
    """
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
        problem = "cannot be reached"
        if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
            problem = f"answered {error.__cause__.response.status_code}"
        raise WeightsError(
            f"{what}, and the Hub at {endpoint} {problem}: try again later, or copy the cache of a "
            "machine that has it"
        ) from None
    except hub_errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{what}, and the Hub at {endpoint} has no such repository: check the name, and where "
            "it is private, `hf auth login`"
        ) from None
    except hub_errors.EntryNotFoundError:
        raise WeightsError(
            f"{repository} on the Hub at {endpoint} has no {file}, and nothing else is opened: ask "
            "who published it for that file"
        ) from None
    except hub_errors.HfHubHTTPError as error:
        raise WeightsError(
            f"{what}, and the Hub at {endpoint} answered {error.response.status_code}: "
            "try again later"
        ) from None
    except PermissionError as error:
        raise WeightsError(
            f"{what}, which cannot be written ({error.filename}): set HF_HOME, or give cache_dir="
        ) from None
    except NETWORK_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{what}, and its download from {endpoint} broke off ({reason}): try again"
        ) from None
    return Path(path)


def _removed(path: Path) -> str | None:
    """Remove a cached file with what it points to; where that is impossible, say so."""
    try:
        for part in {path.resolve(), path}:
            part.unlink()
    except OSError as error:
        return f"remove it, which failed here ({error.strerror}), and ask again"
    return None
