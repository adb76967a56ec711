"""The Hugging Face Hub: `hf://owner/repo/path/to/file`, or `hf://owner/repo@revision/path/to/file`; folders too.

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

from engines.errors import CheckpointError, UsageError
from engines.packages import install_command

# One slash is enough: `pathlib` folds the two into one.
_PREFIX = re.compile(r"hf:/{1,2}(?!/)")
_FOLDER = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.*))?")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")

# Error of `huggingface_hub.errors` -> what a user is told; an error stands before the classes that it derives from.
_PROBLEMS = {
    "LocalEntryNotFoundError": "{url} is not in the local cache and the Hub cannot be reached: check the network, "
    "HF_ENDPOINT and HF_HUB_OFFLINE",
    "EntryNotFoundError": "{url}: the repository {repo} has no file {file}",
    "GatedRepoError": "{url} is gated: accept its terms on the Hub, then log in with `hf auth login` or set HF_TOKEN",
    "RepositoryNotFoundError": "{url}: there is no repository {repo}, or it is private: check the name, or set "
    "HF_TOKEN",
    "RevisionNotFoundError": "{url}: the repository {repo} has no revision {revision}",
    "HFValidationError": "{url}: {repo!r} is no name of a repository: check it",
}


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    repo: str
    """Owner and name, with a slash between them."""
    file: str
    """Path inside the repository."""
    revision: str | None = None
    """Branch, tag or commit; None for the repository's main branch."""

    @property
    def url(self) -> str:
        """The name that `parse_hub_name` reads."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}/{self.file}"

    def inside(self, name: str) -> HubFile:
        """The file `name` of what is a folder."""
        return dataclasses.replace(self, file=f"{self.file}/{name}" if self.file else name)

    def sibling(self, name: str) -> HubFile:
        """The file `name` in the same folder."""
        folder = self.file.rpartition("/")[0]
        return dataclasses.replace(self, file=f"{folder}/{name}" if folder else name)


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` means a file of the Hub."""
    return _PREFIX.match(str(name)) is not None


def parse_hub_folder(name: str | Path) -> HubFile:
    """Read an `hf://` name of a folder, or of a whole repository: its `file` is empty. Raises `UsageError`."""
    match = _FOLDER.fullmatch(_PREFIX.sub("", str(name), count=1))
    if match is None:
        raise UsageError(f"{name} names no repository: write hf://owner/repo or hf://owner/repo/path/to/folder")
    return HubFile(match["repo"], (match["file"] or "").strip("/"), match["revision"])


def parse_hub_name(name: str | Path) -> HubFile:
    """Read an `hf://` name. Raises `CheckpointError` where it names no file."""
    match = _NAME.fullmatch(_PREFIX.sub("", str(name), count=1))
    if match is None:
        raise CheckpointError(f"{name} names no file of a repository: write hf://owner/repo/path/to/file")
    return HubFile(match["repo"], match["file"], match["revision"])


def download(
    file: HubFile,
    *,
    missing_ok: bool = False,
    unreachable_ok: bool = False,
    error: type[UsageError] = CheckpointError,
) -> Path | None:
    """The local copy of `file`, downloaded unless the cache has it.

    `missing_ok`: None where the repository has no such file. `unreachable_ok`: None where the Hub cannot be reached and
    the cache has no copy: for files that are nice to have, so that an air-gapped machine with the weights in its cache
    still works. Otherwise these raise `error`, as what may not be read does, and a missing `huggingface_hub`.
    """
    try:
        from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache
    except ImportError as missing:
        raise error(f"{file.url} needs huggingface_hub: {install_command('hub')}") from missing
    try:
        # Asked of this commit before: without network, asking again would take 20 seconds of retries.
        if missing_ok and try_to_load_from_cache(file.repo, file.file, revision=file.revision) is _CACHED_NO_EXIST:
            return None
        endpoint = os.environ.get("HF_ENDPOINT") or None
        return Path(hf_hub_download(file.repo, file.file, revision=file.revision, endpoint=endpoint))
    except Exception as raised:  # the HTTP library differs between versions of huggingface_hub, and so do its errors
        kind = next((name for name in _PROBLEMS if isinstance(raised, getattr(errors, name))), "")
        if (kind == "LocalEntryNotFoundError" and unreachable_ok) or (kind == "EntryNotFoundError" and missing_ok):
            return None
        reason = next(iter(str(raised).strip().splitlines()), type(raised).__name__)
        problem = _PROBLEMS.get(kind, "{url} could not be downloaded ({reason}): try again")
        raise error(problem.format(url=file.url, reason=reason, **dataclasses.asdict(file))) from raised
