"""`var-export triton`: options onto configurations, and mistakes in one line."""

import json

import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle


def test_writes_two_models(call, tmp_path):
    code, out, err = call("triton", DEMO_BUNDLE, "--repository", tmp_path / "models")
    assert (code, err) == (0, "")
    assert out.split() == [str(tmp_path / "models/var"), str(tmp_path / "models/var_stream")]
    assert Bundle.open(tmp_path / "models/var_stream/bundle").name == "var-emoji-demo"


def test_options_reach_the_configuration(call, tmp_path):
    code, out, _ = call(
        "triton", DEMO_BUNDLE, "--repository", tmp_path, "--name", "emoji", "--max-batch", 3, "--queue-size", 5,
        "--queue-timeout", 0.25, "--instances", 2, "--cache", "--link", "--provider", "cuda", "--device", 1,
        "--threads", 7, "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["models"] == [str(tmp_path / "emoji"), str(tmp_path / "emoji_stream")]
    unary, stream = ((tmp_path / name / "config.pbtxt").read_text() for name in ("emoji", "emoji_stream"))
    for text in (
        "max_batch_size: 3", "max_queue_size: 5", "default_timeout_microseconds: 250000", "count: 2",
        f'string_value: "{DEMO_BUNDLE}"', 'string_value: "cuda"', 'string_value: "1"', 'string_value: "7"',
    ):  # fmt: skip
        assert text in stream, text
    assert "response_cache" in unary
    assert "onnxruntime-gpu" in (tmp_path / "emoji_stream/requirements.txt").read_text()


def test_stock_writes_the_fused_graph(call, tmp_path, demo_both_bundle):
    assert call("triton", demo_both_bundle, "--repository", tmp_path, "--stock", "onnxruntime")[0] == 0
    assert (tmp_path / "var/1/fused.onnx").is_file()
    assert "KIND_CPU" in (tmp_path / "var/config.pbtxt").read_text()
    arguments = ["--stock", "onnxruntime", "--provider", "cuda", "--device", 2]
    assert call("triton", demo_both_bundle, "--repository", tmp_path, *arguments)[0] == 0
    assert "gpus: [2]" in (tmp_path / "var/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stock", "onnxruntime", "--max-batch", 4], "--max-batch is for the Python models"),
        (["--stock", "tensorrt", "--link"], "--link is for the Python models"),
        (["--stock", "tensorrt", "--provider", "cuda"], "--provider cuda cannot be combined"),
        (["--stock", "onnxruntime"], "no fused graph"),
        (["--name", "a/b"], "no name for a model"),
        (["--max-batch", 0], "--max-batch"),
        (["--queue-timeout", 0], "--queue-timeout"),
    ],
)
def test_mistakes_are_one_line(arguments, words, call, tmp_path):
    code, out, err = call("triton", DEMO_BUNDLE, "--repository", tmp_path / "models", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert not (tmp_path / "models").exists()


def test_a_file_is_no_repository(call, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = call("triton", DEMO_BUNDLE, "--repository", tmp_path / "file")
    assert (code, err.count("\n")) == (2, 1)
