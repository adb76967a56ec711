"""Servers that start wrong, lose a process, or remember: each test has a server of its own."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

import tritonclient.grpc as grpc
from triton_calls import Stream, eventually, inputs, unary
from triton_server import Server
from tritonclient.utils import InferenceServerException

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.triton.writing.pbtxt import Serving
from engines.triton.writing.repository import plan_python, write

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


@pytest.fixture
def own_repository(tmp_path):
    def make(**serving):
        write(plan_python(Bundle.open(DEMO_BUNDLE), Serving(**serving)), tmp_path / "repository")
        return tmp_path / "repository"

    return make


def damage(file):
    """Flip a byte of a copy: the file itself is another name of the embedded bundle's."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


def test_a_damaged_bundle_fails_to_load_and_says_why(needs_triton, own_repository, tmp_path):
    repository = own_repository()
    damage(repository / "var_stream/bundle/weights.bin")
    with Server(repository, tmp_path, wait=False) as server:
        assert server.process.wait(60) != 0
        assert "weights.bin is not the file that was built (SHA-256 differs); copy it again" in server.text()
        assert "Traceback" not in server.text()
    assert Bundle.open(DEMO_BUNDLE).path == DEMO_BUNDLE  # it is whole


def test_a_smaller_engine_than_configured_fails_to_load_and_says_why(needs_triton, own_repository, tmp_path):
    """A wrong provider, here: any error of ours reaches the log as one line."""
    with Server(own_repository(provider="cuda"), tmp_path, wait=False) as server:
        assert server.process.wait(60) != 0
        assert "Traceback" not in server.text()
        assert "cuda" in server.text().lower()


def test_a_bundle_may_lie_elsewhere(needs_triton, local, tmp_path):
    write(plan_python(Bundle.open(DEMO_BUNDLE), Serving(name="emoji"), embed=False), tmp_path / "linked")
    assert not (tmp_path / "linked/emoji_stream/bundle").exists()
    with Server(tmp_path / "linked", tmp_path) as server, grpc.InferenceServerClient(server.grpc) as client:
        tokens = client.infer("emoji", inputs(class_=88)).as_numpy("tokens")
    np.testing.assert_array_equal(tokens, local.generate(88).tokens)


def test_openvino_serves_too(needs_triton, own_repository, local, tmp_path):
    repository = own_repository(backend="openvino", threads=1)
    assert "openvino" in (repository / "var_stream/requirements.txt").read_text(encoding="utf-8")
    with Server(repository, tmp_path) as server:
        tokens = unary(server, class_=88, seed=4)[1]
        np.testing.assert_array_equal(tokens, local.generate(88, seeds=4).tokens)
    assert "openvino_telemetry" not in server.text()


def test_the_cache_answers_what_was_asked_before(needs_triton, own_repository, local, tmp_path):
    with Server(own_repository(cache=True), tmp_path, "--cache-config=local,size=4194304") as server:
        first, again = (unary(server, class_=88, seed=7) for _ in range(2))
        other = unary(server, class_=88, seed=8)
        hits = server.metric("nv_cache_num_hits_per_model", model="var")
    for got in (first, again):
        np.testing.assert_array_equal(got[1], local.generate(88, seeds=7).tokens)
    np.testing.assert_array_equal(other[1], local.generate(88, seeds=8).tokens)
    assert hits == 1


def test_a_request_that_waited_too_long_is_refused(needs_triton, own_repository, tmp_path):
    with Server(own_repository(queue_seconds=0.05), tmp_path) as server:
        with Stream(server, class_=[1] * 8) as blocker:
            responses = iter(blocker)
            next(responses)  # the engines are busy now, for longer than that
            with grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as caught:
                client.infer("var", inputs(class_=2))
            assert len(list(responses)) == 6
        assert str(caught.value.status()) == "StatusCode.UNAVAILABLE", caught.value.message()
        unary(server, class_=2)


@pytest.mark.parametrize(("victim", "words"), [("var_stream", {"healthy"}), ("var", {"healthy", "Deadline"})])
def test_a_process_that_dies_under_load_comes_back_with_a_load(
    victim, words, needs_triton, own_repository, local, tmp_path
):
    """As docs/triton.md has it: `load_model` is the remedy. Of `var`, requests under way wait for their time limit."""
    wanted = local.generate(88, seeds=3).tokens
    answers, stop = [], threading.Event()

    def ask():
        with grpc.InferenceServerClient(server.grpc) as client:
            while not stop.is_set():
                try:
                    tokens = client.infer("var", inputs(class_=88, seed=3), client_timeout=15).as_numpy("tokens")
                    answers.append((tokens == wanted).all())
                except InferenceServerException as error:
                    answers.append(error)
                    time.sleep(0.05)

    with Server(own_repository(), tmp_path, *EXPLICIT) as server, grpc.InferenceServerClient(server.grpc) as client:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            assert eventually(lambda: len(answers) >= 8)
            os.kill(server.stubs()[victim], signal.SIGKILL)
            assert eventually(lambda: any(isinstance(answer, Exception) for answer in answers), 60)
            client.load_model(victim)
            before = len(answers)
            assert eventually(
                lambda: sum(answer is True or answer is np.True_ for answer in answers[before:]) >= 24, 60
            )
        finally:
            stop.set()
            for thread in threads:
                thread.join(90)
        assert not any(thread.is_alive() for thread in threads)
    right = [answer for answer in answers if not isinstance(answer, Exception)]
    assert all(right), "no answer was mixed up"
    failures = [answer.message() for answer in answers if isinstance(answer, Exception)]
    assert all(any(word in failure for word in words) for failure in failures), failures


def test_nothing_is_left_behind(needs_triton, own_repository, tmp_path):
    with Server(own_repository(), tmp_path) as server:
        unary(server, class_=1)
        stubs = server.stubs()
        flags = Path(tempfile.gettempdir()) / f"var-{os.getuid()}-{server.process.pid}"
        assert flags.is_dir()
        assert not list(flags.iterdir())
    assert len(stubs) == 2
    assert eventually(lambda: not any(_runs(pid) for pid in stubs.values()))
    assert not flags.exists()


def _runs(pid):
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0
