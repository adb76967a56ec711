"""`var-export serve`: what is refused before a socket is opened, or when there is none."""

import socket
import sys

import pytest

from engines.bundle.bundle import DEMO_BUNDLE


@pytest.fixture
def key(tmp_path):
    def write(text):
        file = tmp_path / "key"
        file.write_bytes(text)
        return file

    return write


def one_line(answer, *words):
    code, out, err = answer
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line


@pytest.fixture
def serve(call):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    return lambda *arguments: call("serve", *arguments)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_a_key(serve, host):
    one_line(serve("--host", host), "--api-key-file", "--insecure")


@pytest.mark.parametrize("text", [b"", b"short", b"two words here", b"\xff" * 20, b"x" * 5000])
def test_keys_that_are_none(serve, key, text):
    one_line(serve("--api-key-file", key(text)), "key")


def test_a_key_file_that_is_not_there(serve, tmp_path):
    one_line(serve("--api-key-file", tmp_path / "missing"), "missing")


def test_a_port_that_is_taken(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one_line(serve("--port", taken.getsockname()[1]), "choose another --port")


def test_an_address_that_is_not_of_this_machine(serve):
    one_line(serve("--host", "192.0.2.1", "--insecure", "--port", 0), "cannot listen on 192.0.2.1")


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "ftp://x", ""])
def test_origins_that_are_none(serve, origin):
    one_line(serve("--allow-origin", origin), "--allow-origin")


def test_bundles_that_are_none(serve, tmp_path):
    one_line(serve(tmp_path / "nothing"), "nothing")
    one_line(serve(DEMO_BUNDLE, DEMO_BUNDLE), "two bundles are called")


def test_without_the_packages_it_says_which(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    one_line(call("serve"), "serve]")
