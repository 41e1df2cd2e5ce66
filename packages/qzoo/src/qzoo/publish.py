"""A folder of weights as a repository on the Hugging Face Hub."""

import difflib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from timm.models import save_for_hf

from qzoo.card import model_card
from qzoo.errors import WeightsError
from qzoo.folder import WeightsFolder, read_folder
from qzoo.hub import HUB_FILE, NETWORK_ERRORS, answered, check_repository, hub_id
from qzoo.index import RECORD, replace_files


class Change(NamedTuple):
    """What publishing does to one file of a repository."""

    path: str
    kind: Literal["new", "changed", "same"]
    difference: str
    """As ``diff -u`` shows it, where both are text."""


class Publication(NamedTuple):
    """A repository, and what publishing does to its files; None where there was no token."""

    repository: str
    changes: list[Change] | None


def publish(folder: str | Path, *, dry_run: bool = False, replace: bool = False) -> Publication:
    """Make a folder of weights a repository on the Hub; a second time changes nothing.

    It writes timm's ``config.json`` and the model card, ``README.md``, beside the weights, and with
    a token of the Hub pushes what is not there yet.

    Args:
        folder: holds ``model.safetensors`` and ``provenance.json``.
        dry_run: only say what would be done; nothing is written and no token is needed.
        replace: whether files that are there with another content may be replaced.

    Raises :class:`qzoo.WeightsError` for a folder that is not whole, where the Hub refuses or
    cannot be reached, and for files that it has with another content.
    """
    weights = read_folder(folder)
    repository = hub_id(weights.record)
    check_repository(repository)
    contents = {
        HUB_FILE: weights.file.read_bytes(),
        RECORD: (Path(folder) / RECORD).read_bytes(),
        "config.json": _timm_config(weights),
        "README.md": model_card(weights.record).encode(),
    }
    if not dry_run:
        made = ("config.json", "README.md")
        replace_files({Path(folder) / name: contents[name] for name in made})
        if get_token() is None:
            return Publication(repository, None)
    api = HfApi()
    with _hub_errors(repository):
        changes = _changes(api, repository, contents)
    added = [
        CommitOperationAdd(change.path, contents[change.path])
        for change in changes
        if change.kind != "same"
    ]
    if dry_run or not added:
        return Publication(repository, changes)
    taken = [change.path for change in changes if change.kind == "changed"]
    if taken and not replace:
        raise WeightsError(
            f"{repository} has another {', '.join(taken)}: look at the difference, dry_run=True "
            "(--dry-run), and choose another tag, or replace it on purpose, replace=True "
            "(--replace)"
        )
    with _hub_errors(repository):
        api.create_repo(repository, exist_ok=True)
        api.create_commit(repository, added, commit_message=f"Publish {repository}")
    return Publication(repository, changes)


def _changes(api: HfApi, repository: str, contents: Mapping[str, bytes]) -> list[Change]:
    try:
        there = {
            info.path: info.lfs.sha256 if info.lfs else info.blob_id
            for info in api.get_paths_info(repository, list(contents))
            if isinstance(info, RepoFile)
        }
    except GatedRepoError:  # a kind of the next, but there is something
        raise
    except RepositoryNotFoundError:
        there = {}
    return [
        _change(api, repository, path, content, there.get(path))
        for path, content in contents.items()
    ]


def _timm_config(weights: WeightsFolder) -> bytes:
    """What timm writes for the network."""
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(weights.model(), folder, safe_serialization=True)
        return (Path(folder) / "config.json").read_bytes()


def _change(api: HfApi, repository: str, path: str, content: bytes, there: str | None) -> Change:
    """A file's change; ``there`` is what the Hub knows it by, a sha256 or git's sha1."""
    sha256 = hashlib.sha256(content).hexdigest()
    blob = b"blob %d\0" % len(content) + content
    if there in (sha256, hashlib.sha1(blob, usedforsecurity=False).hexdigest()):
        return Change(path, "same", "")
    if there is None:
        return Change(path, "new", "")
    if path == HUB_FILE:
        return Change(path, "changed", f"-sha256 {there}\n+sha256 {sha256}\n")
    with tempfile.TemporaryDirectory() as cache:
        file = Path(api.hf_hub_download(repository, path, cache_dir=cache))
        old = file.read_text("utf-8", errors="replace")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        content.decode().splitlines(keepends=True),
        f"{repository}/{path}",
        f"folder/{path}",
    )
    return Change(path, "changed", "".join(lines))


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Say in one sentence what the Hub's client reports."""
    endpoint = constants.ENDPOINT
    try:
        try:
            yield
        except RuntimeError as error:  # so it reports a failed upload
            raise error.__cause__ or error from None
    except HfHubHTTPError as error:
        raise WeightsError(f"{repository} was not changed, for {answered(error)}") from None
    except OfflineModeIsEnabled:
        raise WeightsError(
            f"{repository} was not changed, for HF_HUB_OFFLINE forbids it: unset it"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{repository} was not changed, for what the Hub at {endpoint} answered is not what a "
            f"Hub answers ({error}): check HF_ENDPOINT, HF_TOKEN and your network"
        ) from None
    except NETWORK_ERRORS as error:
        raise WeightsError(
            f"{repository} was not changed, for the Hub at {endpoint} cannot be reached ({error}): "
            "try again later"
        ) from None
