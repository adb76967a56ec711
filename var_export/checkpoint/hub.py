"""Files of the Hugging Face Hub: `hf://owner/repo/path/to/file`, or `hf://owner/repo@revision/path/to/file`.

Downloads go through `huggingface_hub` (its cache, its token, its offline mode), which is imported when
the first such name is opened. The endpoint is read from `HF_ENDPOINT` at every call, so that a mirror can
be chosen after the import.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from engines.errors import CheckpointError

# One slash is enough: `pathlib` folds the two into one.
_PREFIX = re.compile(r"hf:/{1,2}(?!/)")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    repo: str
    file: str
    revision: str | None = None

    @property
    def url(self) -> str:
        """The name that `parse_hub_name` reads."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}/{self.file}"

    def sibling(self, name: str) -> HubFile:
        """The file `name` in the same folder."""
        folder = self.file.rpartition("/")[0]
        return dataclasses.replace(self, file=f"{folder}/{name}" if folder else name)


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` means a file of the Hub."""
    return _PREFIX.match(str(name)) is not None


def parse_hub_name(name: str | Path) -> HubFile:
    """Read an `hf://` name. Raises `CheckpointError` where it names no file."""
    match = _NAME.fullmatch(_PREFIX.sub("", str(name), count=1))
    if match is None:
        raise CheckpointError(f"{name} names no file of a repository: write hf://owner/repo/path/to/file")
    return HubFile(match["repo"], match["file"], match["revision"])


def download(file: HubFile) -> Path:
    """The local copy of `file`, downloaded unless the cache has it.

    Raises:
        CheckpointError: `huggingface_hub` is not installed, the repository or file does not exist or may
            not be read, or the Hub cannot be reached and the cache has no copy.
    """
    path = _download(file, missing_ok=False, unreachable_ok=False)
    assert path is not None
    return path


def download_if_there(file: HubFile, *, unreachable_ok: bool = False) -> Path | None:
    """As `download`, but None where the repository has no such file.

    With `unreachable_ok`, also None where the Hub cannot be reached and the cache has no copy: for files
    that are nice to have, so that an air-gapped machine with the weights in its cache still works.
    """
    return _download(file, missing_ok=True, unreachable_ok=unreachable_ok)


def _download(file: HubFile, *, missing_ok: bool, unreachable_ok: bool) -> Path | None:
    try:
        from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise CheckpointError(f'{file.url} needs huggingface_hub: pip install "var-export[hub]"') from error
    try:
        # Asked of this commit before: without network, asking again would take 20 seconds of retries.
        if missing_ok and try_to_load_from_cache(file.repo, file.file, revision=file.revision) is _CACHED_NO_EXIST:
            return None
        endpoint = os.environ.get("HF_ENDPOINT") or None
        return Path(hf_hub_download(file.repo, file.file, revision=file.revision, endpoint=endpoint))
    except errors.LocalEntryNotFoundError as error:  # before its base, which means "not in the repository"
        if unreachable_ok:
            return None
        raise CheckpointError(
            f"{file.url} is not in the local cache and the Hub cannot be reached: check the network, HF_ENDPOINT "
            "and HF_HUB_OFFLINE"
        ) from error
    except errors.EntryNotFoundError as error:
        if missing_ok:
            return None
        raise CheckpointError(f"{file.url}: the repository {file.repo} has no file {file.file}") from error
    except errors.GatedRepoError as error:  # before its base
        raise CheckpointError(
            f"{file.url} is gated: accept its terms on the Hub, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{file.url}: there is no repository {file.repo}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{file.url}: the repository {file.repo} has no revision {file.revision}") from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{file.url}: {file.repo!r} is no name of a repository: check it") from error
    except Exception as error:  # the HTTP library differs between versions of huggingface_hub, and so do its errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{file.url} could not be downloaded ({reason}): try again") from error
