"""A stand-in of the Hugging Face Hub on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Serves `/{repo}/resolve/{revision}/{file}` from `root/{repo}/{file}`."""

    root: Path
    requests: list[str] = field(default_factory=list)
    status: int | None = None
    """Answer requests that start with `fails` with this."""
    fails: str = ""
    error_code: str | None = None
    """The X-Error-Code of that answer."""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
                path = hub.root / match[1] / match[3] if match else hub.root / "nothing"
                code = "RepoNotFound" if not path.parent.is_dir() else None if path.is_file() else "EntryNotFound"
                if match and match[2] not in ("main", "v1", COMMIT):
                    code = "RevisionNotFound"
                status = hub.status if self.command.startswith(hub.fails) else None
                if status or code:
                    self.send_response(status or 404)
                    self.send_header("X-Error-Code", hub.error_code or code or "")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    hub = Hub(tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    home = tmp_path / "hf_home"
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(home))
    # huggingface_hub reads these when it is first imported, which another test may have done.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(home / "token"))
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
