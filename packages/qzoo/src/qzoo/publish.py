"""A folder of weights as a repository on the Hugging Face Hub."""

import difflib
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from timm.models import save_for_hf

from qzoo.card import model_card
from qzoo.errors import WeightsError
from qzoo.folder import RECORD, WeightsFolder, read_folder
from qzoo.hub import HUB_FILE, NETWORK_ERRORS, hub_id
from qzoo.index import replace_file
from qzoo.provenance import Provenance

FILES = (HUB_FILE, RECORD, "config.json", "README.md")
"""What a repository holds."""


class Change(NamedTuple):
    """What publishing does to one file of a repository."""

    path: str
    kind: Literal["new", "changed", "same"]
    difference: str
    """As ``diff -u`` shows it, where both are text."""


def write_repository(folder: str | Path) -> Provenance:
    """Write timm's ``config.json`` and the model card, ``README.md``, beside a folder's weights.

    Raises :class:`qzoo.WeightsError` for a folder that is not whole; nothing is written then.
    """
    weights = read_folder(folder)
    config = _timm_config(weights)
    card = model_card(weights.record)
    replace_file(Path(folder) / "config.json", config)
    replace_file(Path(folder) / "README.md", card.encode())
    return weights.record


def changes(folder: str | Path) -> list[Change]:
    """What :func:`publish` would do, file by file.

    Raises :class:`qzoo.WeightsError` where the Hub cannot be asked.
    """
    folder = Path(folder)
    repository = hub_id(read_folder(folder).record)
    api = HfApi()
    with _hub_errors(repository):
        try:
            there = {
                info.path: info.lfs.sha256 if info.lfs else info.blob_id
                for info in api.get_paths_info(repository, list(FILES))
                if isinstance(info, RepoFile)
            }
        except RepositoryNotFoundError:
            there = {}
        return [_change(api, repository, folder / name, there.get(name)) for name in FILES]


def publish(folder: str | Path, *, replace: bool = False) -> list[Change]:
    """Push a folder that :func:`write_repository` has filled; a second time changes nothing.

    Args:
        folder: of weights.
        replace: whether other weights of that name on the Hub may be replaced.

    Raises :class:`qzoo.WeightsError` without a token, where the Hub refuses, and for other weights
    under a name that is taken.
    """
    repository = hub_id(read_folder(folder).record)
    if get_token() is None:
        raise WeightsError(
            f"pushing to {repository} needs a token of the Hub: `hf auth login`, or set HF_TOKEN"
        )
    found = changes(folder)
    changed = [change.path for change in found if change.kind != "same"]
    if not changed:
        return found
    taken = any(change.path == HUB_FILE and change.kind == "changed" for change in found)
    if taken and not replace:
        raise WeightsError(
            f"{repository} has other weights: choose another tag, for who loads them counts on "
            "what they are, or replace them on purpose"
        )
    api = HfApi()
    with _hub_errors(repository):
        api.create_repo(repository, exist_ok=True)
        added = [CommitOperationAdd(name, Path(folder) / name) for name in changed]
        api.create_commit(repository, added, commit_message=f"Publish {repository}")
    return found


def _timm_config(weights: WeightsFolder) -> bytes:
    """What timm writes for the network."""
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(weights.model(), folder, safe_serialization=True)
        return (Path(folder) / "config.json").read_bytes()


def _change(api: HfApi, repository: str, path: Path, there: str | None) -> Change:
    """A file's change; ``there`` is what the Hub knows it by, a sha256 or git's sha1."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    blob = b"blob %d\0" % len(content) + content
    if there in (sha256, hashlib.sha1(blob, usedforsecurity=False).hexdigest()):
        return Change(path.name, "same", "")
    if there is None:
        return Change(path.name, "new", "")
    if path.name == HUB_FILE:
        return Change(path.name, "changed", f"-sha256 {there}\n+sha256 {sha256}\n")
    with tempfile.TemporaryDirectory() as cache:
        old = Path(api.hf_hub_download(repository, path.name, cache_dir=cache)).read_text("utf-8")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        content.decode().splitlines(keepends=True),
        f"{repository}/{path.name}",
        str(path),
    )
    return Change(path.name, "changed", "".join(lines))


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Say in one sentence what the Hub's client reports."""
    try:
        try:
            yield
        except RuntimeError as error:  # so it reports a failed upload
            raise error.__cause__ or error from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = (
            "the token may not write there: take one that may, or another organisation by "
            "QZOO_HUB_ORGANISATION"
            if status in (401, 403)
            else "nothing was changed; try again later"
        )
        raise WeightsError(
            f"the Hub at {constants.ENDPOINT} answered {status} for {repository}: {advice}"
        ) from None
    except NETWORK_ERRORS as error:
        raise WeightsError(
            f"the Hub at {constants.ENDPOINT} cannot be reached for {repository} ({error}): try "
            "again later"
        ) from None
