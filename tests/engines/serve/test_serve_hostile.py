"""Requests that no client means: none gets more than a refusal, and the server draws afterwards.

`SERVE_FUZZ=2000` sends more of them than the usual few.
"""

import json
import os
import random
import socket

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = int(os.environ.get("SERVE_FUZZ", "300"))
PATHS = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/models",
    "/v1/models/x",
    "/v1/classes",
    "/healthz",
    "/..",
    "//",
)
NAMES = ("prompt", "n", "size", "seed", "cfg", "top_k", "top_p", "stream", "partial_images", "preview_scales", "boxes",
         "model", "output_format", "output_compression", "response_format", "fit", "x" * 300, "\u0000")  # fmt: skip


def odd(rng, depth=0):
    """Some value of JSON, or nearly."""
    kinds = [
        lambda: rng.choice([None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, -0.0, 0.5, 10**400]),
        lambda: rng.choice(
            ["", "none", "pizza", "88", "9" * 5000, "\ud800", "\u0000", "../../etc/passwd", "1e999", "all"]
        ),
        lambda: "".join(chr(rng.randrange(1, 0xD000)) for _ in range(rng.randrange(40))),
    ]
    if depth < 4:
        kinds += [
            lambda: [odd(rng, depth + 1) for _ in range(rng.randrange(5))],
            lambda: {rng.choice(NAMES): odd(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(kinds)()


def body_of(rng):
    """Bytes and their type: JSON of odd values, damaged JSON, a form, or noise."""
    document = {name: odd(rng) for name in rng.sample(NAMES, rng.randrange(6))}
    if rng.random() < 0.3:
        document["prompt"] = "88"
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = rng.randrange(4)
    if kind == 0:
        at = rng.randrange(len(text) + 1)
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :], "application/json"
    if kind == 1:
        boundary, parts = b"b" * rng.randrange(1, 60), []
        for name in [*rng.sample(NAMES[:12], 3), "image"]:
            file = b'; filename="f"' if rng.random() < 0.5 else b""
            value = rng.choice([b"", rng.randbytes(200), b"\x89PNG\r\n\x1a\n" + rng.randbytes(99), b"88", b"[1,2"])
            head = b'\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + file
            parts.append(b"--" + boundary + head + b"\r\n\r\n" + value + b"\r\n")
        end = b"--" + boundary + (b"--\r\n" if rng.random() < 0.8 else b"")
        return b"".join(parts) + end, f"multipart/form-data; boundary={boundary.decode()}"
    if kind == 2:
        return rng.randbytes(rng.randrange(2000)), rng.choice(
            ["application/json", "text/plain", "multipart/form-data", ""]
        )
    return text, "application/json"


def test_hostile_requests_are_refused_and_the_server_goes_on(server):
    rng = random.Random(7)
    statuses = set()
    with httpx.Client(base_url=server, timeout=60) as client:
        for number in range(COUNT):
            content, kind = body_of(rng)
            method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE"])
            path = rng.choice(PATHS[:2]) if rng.random() < 0.8 else rng.choice(PATHS)
            headers = {"Content-Type": kind}
            if rng.random() < 0.1:
                name = rng.choice(["Host", "Origin", "Authorization", "X-Request-Id", "Accept"])
                odd_value = rng.choice(
                    ["[", "a]b", "http://[", "null", "x" * 5000, "http://\xff", "%00", "localhost:99999"]
                )
                headers[name] = odd_value.encode("latin-1")
            answer = client.request(method, path, content=content, headers=headers)
            assert answer.status_code < 500, (number, method, path, content[:300], answer.text[:300])
            statuses.add(answer.status_code)
            if answer.status_code >= 400 and method == "POST":
                assert answer.json()["error"]["message"], number
        assert {400, 405} <= statuses
        drawn = client.post("/v1/images/generations", json={"prompt": "88", "seed": 1})
        assert drawn.status_code == 200


def test_what_is_no_http(server):
    host, port = server.removeprefix("http://").split(":")
    rng = random.Random(3)
    for number in range(40):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            start = rng.choice(
                [b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", b"GET "]
            )
            connection.sendall((start if number % 2 else b"") + rng.randbytes(300))
            if number % 3:
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
                assert not answer or answer.split()[1].startswith(b"4"), answer
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok"}
