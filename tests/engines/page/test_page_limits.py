"""What a page lets browsers do, and others: its key, its files, its paths, its beginning and its end."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from seeing import pixels

from tests.serving import eventually, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_key_is_the_password(looking, bundles, tmp_path):
    file = tmp_path / "key"
    file.write_text("a-long-secret\n")
    with serving(bundles[0], "--api-key-file", file, "--check", "never", page=True) as (_, address):
        html = {"Accept": "text/html"}
        refused = httpx.get(address, headers=html)
        assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
        assert httpx.get(address, headers=html, auth=("anybody", "wrong")).status_code == 401
        assert httpx.get(address, headers={"Authorization": "Basic é".encode("latin-1")}).status_code == 401
        account = {"username": "anybody", "password": "a-long-secret"}
        with looking(address, http_credentials=account) as look:
            look.press("draw", "draw-status", "Done: 1 image.")
            (shown,) = look.images("drawn")
            assert httpx.get(shown).status_code == 401
            assert pixels(shown, auth=("anybody", "a-long-secret")).shape == (64, 64, 3)


def test_a_page_of_elsewhere_cannot_use_it(server):
    assert httpx.get(server, headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert httpx.get(server, headers={"Host": "elsewhere.example"}).status_code == 403
    policy = httpx.get(server).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    for path in (
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=http://example.com/x.png",
        "gradio_api/file/http://example.com/x.png",
        "gradio_api/proxy=https://example.com/x.png",
        "openapi.json",
        "gradio_api/info",
        "gradio_api/startup-events",
        "docs",
    ):
        assert httpx.get(f"{server}/{path}").status_code == 404, path
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert httpx.get(server, headers=elsewhere).status_code == 200  # a link to it
    assert httpx.get(f"{server}/gradio_api/queue/data", headers=elsewhere).status_code == 403
    assert httpx.get(f"{server}/v1/nothing").json()["error"]["message"] == "Not Found"


def press(server, editor, *, boxes="0,0,1,1", file=None):
    """What the page's Redraw sends, with anything in its place; the messages until it ends."""
    config = httpx.get(f"{server}/config").json()
    (number,) = {
        dependency["id"]
        for dependency in config["dependencies"]
        if any(each["id"] == dependency["targets"][0][0] for each in config["components"]
               if each["props"].get("elem_id") == "redraw")
    }  # fmt: skip
    data = [editor, boxes, False, file, None, "crop", True, "demo-fp32", 88, 0, 1, *[None] * 6]
    body = {"data": data, "fn_index": number, "session_hash": "nobody"}
    joined = httpx.post(f"{server}/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with httpx.stream("GET", f"{server}/gradio_api/queue/data?session_hash=nobody", timeout=60) as answer:
        return "".join(answer.iter_text())


def test_a_browser_names_no_file_and_no_address(server, tmp_path):
    meta = {"meta": {"_type": "gradio.FileData"}}
    own = tmp_path / "own.png"
    Image.new("RGB", (9, 9)).save(own)
    for path in (str(own), "http://example.com/x.png", "../own.png", "/etc/passwd", "\u0000"):
        said = press(server, {"background": {"path": path, **meta}, "layers": [], "composite": None})
        assert "process_completed" in said
        assert "Done" not in said, path
    said = press(server, {"background": None, "layers": []})
    assert "upload a picture first" in said


def upload_by_hand(server, file):
    with file.open("rb") as stream:
        answer = httpx.post(f"{server}/gradio_api/upload", files={"files": stream}, timeout=60)
    return answer


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_size(server, tmp_path):
    large = tmp_path / "large.png"
    Image.new("1", (12_000, 12_000)).save(large)  # 20 kB, and 144 million pixels
    (path,) = upload_by_hand(server, large).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert "more than 50 million pixels" in press(server, {"background": file, "layers": [file], "composite": file})


def test_an_upload_that_is_too_large_is_refused(server, tmp_path):
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(40 * 2**20)
    assert upload_by_hand(server, huge).status_code == 413

    def chunks():
        yield b"--b\r\nContent-Disposition: form-data; name=files; filename=x\r\n\r\n"
        for _ in range(40):
            yield b"x" * 2**20

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server}/gradio_api/upload", content=chunks(), headers=headers, timeout=60)
    assert answer.status_code == 413
    assert httpx.get(f"{server}/healthz").status_code == 200


def test_a_page_that_cannot_be_shown_says_so(bundles, tmp_path):
    (tmp_path / "pandas.py").write_text("raise ImportError('no pandas today')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    with serving(bundles[0], "--check", "never", page=True, env=environment) as (_, address):
        answer = httpx.get(address, timeout=60)
        assert (answer.status_code, "no pandas today" in answer.json()["error"]["message"]) == (503, True)
        assert httpx.get(f"{address}/v1/models").status_code == 200
    with serving("--ui", "--bundle", bundles[0], program="var-run", env=environment) as (process, _):
        assert process.wait(60) == 2
        assert "there is no page to show" in process.stderr.read()


def test_without_a_page_there_is_none(bundles, tmp_path):
    with serving(bundles[0], "--check", "never", "--no-page") as (_, address):
        assert httpx.get(address).json()["error"]["message"] == "Not Found"


def test_what_browsers_were_shown_goes_with_the_server(looking, bundles, tmp_path):
    with serving(bundles[0], "--check", "never", page=True, env=os.environ | {"TMPDIR": str(tmp_path)}) as (
        process,
        address,
    ):
        with looking(address) as look:
            look.press("draw", "draw-status", "Done: 1 image.")
            assert list(tmp_path.glob("var-export-page-*/**/*.png"))
        process.terminate()
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_var_run_opens_it(bundles, tmp_path):
    browser = tmp_path / "browser"
    fetch = "import sys, urllib.request as u; print(len(u.urlopen(sys.argv[1]).read()))"
    slow = f'{sys.executable} -c "{fetch}" "$1" > {tmp_path}/fetched'  # as one that runs in the terminal
    browser.write_text(f'#!/bin/sh\n{slow}\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    environment = os.environ | {"BROWSER": f"{browser} %s"}
    began = time.monotonic()
    with serving("--bundle", bundles[0], "--ui", program="var-run", env=environment) as (_, address):
        eventually(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text(), seconds=60)
        assert int((tmp_path / "fetched").read_text()) > 1000
        assert (tmp_path / "opened").read_text().strip() == address
        answer = httpx.get(address, timeout=30)
        assert "var-export" in answer.text
        assert time.monotonic() - began < 30


def test_gradio_writes_nothing_beside_itself():
    """The function that writes stubs is there under the name by which it is replaced, and is replaced."""
    source = Path(importlib.util.find_spec("gradio").submodule_search_locations[0]) / "component_meta.py"
    assert "\ndef create_or_modify_pyi(" in source.read_text()
    code = "from engines.page.without_stubs import import_quickly as go; go(); import gradio.component_meta as m; "
    shown = "print(m.create_or_modify_pyi.__module__)"
    found = subprocess.run([sys.executable, "-c", code + shown], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "engines.page.without_stubs"


def test_an_idle_server_sleeps(bundles):
    """Seconds of processor time, which a busy machine does not make more."""

    def used(process):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with serving(bundles[0], "--check", "never", page=True) as (process, address):
        assert "var-export" in httpx.get(address, timeout=60).text
        time.sleep(2)
        before = used(process)
        time.sleep(5)
        assert used(process) - before < 0.03 * 5  # 0.01; 0.05 as gradio comes
