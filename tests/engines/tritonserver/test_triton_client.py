"""`var-run --url` and the examples, against a real server."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main
from engines.errors import BackendError, UsageError
from engines.triton.client import RemotePipeline

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def pictures(folder):
    return {path.relative_to(folder).as_posix(): pixels(path) for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--class", "88"],
        ["--class", "parrot,none", "--count", "3", "--seed", "5", "--cfg", "2", "--top-k", "50", "--grid"],
        ["--class", "frog", "--preview"],
        ["--class", "frog,fox", "--cfg", "3", "--cfg-scales", "0,4,5"],
        ["--class", "3", "--count", "2", "--out", "{index}-{label}-{seed}.png", "--batch", "1"],
        ["edit", "../wide.jpg", "--box", "0.3,0.4,0.7,1", "--class", "frog,fox", "--count", "5", "--cfg", "2"],
        ["edit", "../wide.jpg", "--box", "0.3,0.4,0.7,1", "--outpaint", "--preview", "--no-composite"],
        ["edit", "../wide.jpg", "../tall.jpg", "--box", "0,0.5,1,1", "--fit", "pad"],
        ["reconstruct", "../wide.jpg"],
    ],
    ids=["one", "many", "preview", "unguided", "pattern", "edit", "outpaint", "edits", "reconstruct"],
)
def test_the_same_command_makes_the_same_files(arguments, server, folder, capsys, monkeypatch):
    shades = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
    Image.fromarray(shades).save("wide.jpg")
    Image.fromarray(shades.swapaxes(0, 1)).save("tall.jpg")
    for name, where in (("here", ["--bundle", str(DEMO_BUNDLE)]), ("there", ["--url", f"triton://{server.grpc}"])):
        (folder / name).mkdir()
        monkeypatch.chdir(folder / name)
        assert main([*arguments, *where]) == 0, capsys.readouterr()
    here, there = pictures(folder / "here"), pictures(folder / "there")
    assert list(here) == list(there) != []
    for name, picture in here.items():
        assert np.abs(picture.astype(int) - there[name]).max() <= 1, name


def test_a_job_goes_on_where_it_stopped(server, folder, capsys):
    command = ["--class", "88", "--count", "2", "--url", f"triton://{server.grpc}/var", "--out", "out", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["images_made"], first["bundle"]["name"], first["runtime"]["version"]) == (
        2,
        "var-emoji-demo",
        "2.51.0",
    )
    assert first["timings"]["scales_s"] is None
    (folder / "out/00001-parrot-1.png").unlink()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 1


def test_tokens_arrays_and_classes_come_from_a_server_too(server, folder, capsys, local):
    where = ["--url", f"triton://{server.grpc}"]
    assert main(["--class", "88", "--save-tokens", "t.npz", "--npz", "i.npz", *where]) == 0
    wanted = local.generate(88)
    np.testing.assert_array_equal(np.load("t.npz")["tokens"], wanted.tokens)
    np.testing.assert_array_equal(np.load("i.npz")["arr_0"], wanted.images)
    assert main(["classes", *where]) == 0
    assert "parrot" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option",
    ["--bundle=x", "--form=fused", "--threads=2", "--backend=onnxruntime", "--provider=cuda", "--device=1"],
)
def test_options_of_local_engines_are_refused(option, capsys, folder):
    Image.new("RGB", (64, 64)).save("a.png")
    for command in (["--class", "88"], ["edit", "a.png", "--box", "0,0,1,.5"], ["reconstruct", "a.png"]):
        if command[0] == "reconstruct" and option == "--form=fused":
            continue  # it draws nothing, in no form
        assert main([*command, "--url", "triton://localhost", option]) == 2
        assert capsys.readouterr().err == f"Error: --url and {option.split('=')[0]} cannot be combined\n"


@pytest.mark.parametrize(
    "url", ["localhost:8001", "http://localhost:8001", "triton://", "triton://h:x", "triton://h/a/b"]
)
def test_wrong_addresses_are_one_line(url, capsys):
    assert main(["--class", "88", "--url", url]) == 2
    err = capsys.readouterr().err
    assert "address" in err
    assert err.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert main(["--class", "88", "--url", "triton://127.0.0.1:9"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: triton://127.0.0.1:9: ")
    assert err.count("\n") == 1


def test_errors_say_who_is_to_blame(server):
    with pytest.raises(UsageError, match="nobody"):
        RemotePipeline(f"triton://{server.grpc}/nobody")
    with RemotePipeline(f"triton://{server.grpc}") as remote:
        with pytest.raises(UsageError, match="class 999"):
            remote.generate([999], seeds=[0])
        with pytest.raises(UsageError, match="lower --batch"):
            remote.stream([1] * 9, seeds=range(9)).__next__()
        assert len(remote.generate([1] * 9, seeds=range(9)).images) == 9, "split as the server needs"
        kept = remote.keeping(np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 8, 8), np.bool_))
        assert "forced" in remote.generate([1], seeds=[0], **kept).texts[0]
        remote._takes -= {"picture", "cfg_scales"}  # as of a repository that was written before
        with pytest.raises(UsageError, match="does not edit: write its repository again with var-export triton"):
            remote.reconstruct(np.zeros((1, 64, 64, 3), np.uint8))
        with pytest.raises(UsageError, match="takes no cfg_scales: write its repository again with var-export triton"):
            remote.generate([1, 2], seeds=[0, 1], cfg_scales=[0, 4])
        assert len(remote.generate([1], seeds=[0], cfg_scales=0).images) == 1
        remote.model = "nobody"
        with pytest.raises((UsageError, BackendError), match="nobody"):
            remote.generate([1], seeds=[0])


def run_example(name, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_examples(server, folder, local):
    wanted = local.generate("parrot", seeds=7, cfg=2.0).images[0]
    assert run_example("triton_http.py", server.http) == ["parrot.png"]
    np.testing.assert_array_equal(pixels("parrot.png"), wanted)
    assert run_example("triton_grpc.py", server.grpc) == [f"88-{seed}.png" for seed in (1, 2, 3, 4)]
    wanted = local.generate([88] * 4, seeds=1, cfg=[0.0, 1.0, 2.0, 4.0]).images
    np.testing.assert_array_equal(pixels("88-3.png"), wanted[2])
    assert run_example("triton_stream.py", server.grpc) == [f"frog-{scale}.png" for scale in range(7)]
    np.testing.assert_array_equal(pixels("frog-6.png"), local.generate("frog").images[0])
    assert run_example("triton_edit.py", "parrot.png", "owl", server.grpc) == ["edited.png"]
    lower = np.arange(8)[:, None].repeat(8, 1) >= 4
    np.testing.assert_array_equal(pixels("edited.png"), local.edit("parrot.png", lower, "owl").images[0])


@pytest.mark.slow
def test_the_asyncio_example(folder, local):
    def ask(line, *, stay=True):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(line)
            if not stay:
                return b""
            return b"".join(iter(lambda: connection.recv(65536), b""))

    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "asyncio_service.py", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            port = int(process.stdout.readline().split()[-1])
            header = b"P6 64 64 255\n"
            wanted = header + local.generate("frog", seeds=7).images.tobytes()
            assert ask(b"frog 7\n") == wanted
            assert b"no class is called" in ask(b"nobody at all 1\n")
            for seed in range(6):
                ask(b"parrot %d\n" % seed, stay=False)
            assert ask(b"frog 7\n") == wanted
        finally:
            process.terminate()
        assert "stopped" in process.stderr.read(), "a client that has gone stops the engine"


def test_options_per_image_reach_more_images_than_a_request_holds(server, local):
    count = 11
    options = {"cfg": [0.5 * k for k in range(count)], "top_k": list(range(1, count + 1))}
    with RemotePipeline(f"triton://{server.grpc}") as remote:
        assert remote.max_batch < count
        drawn = remote.generate([3] * count, seeds=list(range(count)), **options)
    np.testing.assert_array_equal(drawn.tokens, local.generate([3] * count, seeds=list(range(count)), **options).tokens)
