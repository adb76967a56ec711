import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import var_run_fake as fake
from PIL import Image

from engines.bundle import DEMO_BUNDLE
from engines.cli import common
from engines.cli.run import main
from engines.errors import BackendError, CheckFailedError
from engines.images import load_png, read_png_text
from engines.uniforms import uniforms

FAKE = Path(fake.__file__)


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return fake.install(monkeypatch.setattr)


@pytest.fixture
def call(pipeline, capsys):
    """Run `var-run`; returns exit code, stdout, stderr."""

    def run(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def error_of(result):
    """The message of a run that must have been refused with one line."""
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("using ")]
    assert (code, out, len(lines)) == (2, "", 1), result
    assert lines[0].startswith("Error: ")
    return lines[0]


# --- images of classes


def test_one_image(call, pipeline):
    code, out, err = call("--class", "parrot")
    assert (code, out) == (0, "var-parrot-0.png\n")
    assert "using the embedded demo bundle" in err
    assert names() == ["var-parrot-0.png"]
    assert np.array_equal(load_png(Path("var-parrot-0.png")), fake.image_of(0, 0))


def test_the_picture_tells_how_it_was_made(call):
    call("--class", "t shirt", "--seed", 7, "--cfg", 2.5, "--top-k", 9)
    text = read_png_text(Path("var-t-shirt-7.png"))
    expected = {
        "class": "2",
        "label": "t-shirt",
        "seed": "7",
        "cfg": "2.5",
        "top_k": "9",
        "top_p": "0.5",
        "temperature": "1.0",
        "bundle": "fake-fp32",
        "precision": "fp32",
        "build_key": "a1" * 32,
        "provider": "cpu",
        "form": "stepwise",
    }
    assert expected.items() <= text.items()
    assert text["Software"].startswith("var-run ")


def test_the_same_command_twice(call, pipeline):
    assert call("--class", 0)[0] == 0
    assert call("--class", "parrot", "--cfg", 1)[0] == 0  # the bundle's own value, said aloud
    assert pipeline.made == [(0, 0), (0, 0)]


@pytest.mark.parametrize("change", [("--cfg", 2), ("--top-k", 3), ("--top-p", 0.1), ("--temperature", 0.5)])
def test_other_settings_do_not_replace_a_picture(call, pipeline, change):
    call("--class", 0)
    assert "--overwrite" in error_of(call("--class", 0, *change))
    assert len(pipeline.loads) == 1
    assert call("--class", 0, *change, "--overwrite")[0] == 0


def test_another_bundle_does_not_replace_a_picture(call, monkeypatch):
    call("--class", 0)
    fake.install(monkeypatch.setattr, fake.bundle(build_key="b2" * 32))
    assert "--overwrite" in error_of(call("--class", 0))


def test_a_picture_of_somebody_else_is_not_replaced(call):
    Image.new("RGB", (4, 4)).save("photo.png")
    before = Path("photo.png").read_bytes()
    assert "photo.png" in error_of(call("--class", 0, "--out", "photo.png"))
    assert Path("photo.png").read_bytes() == before


def test_several_images_go_to_a_folder_and_carry_class_and_seed(call, pipeline):
    code, out, err = call("--class", "parrot,crane-x".split(",")[0], "--class", "2-3", "--count", 2, "--seed", 5)
    assert code == 0
    assert names() == ["out"]
    assert names("out") == [
        "0-parrot-5.png",
        "0-parrot-6.png",
        "2-t-shirt-7.png",
        "2-t-shirt-8.png",
        "3-great-white-shark-10.png",
        "3-great-white-shark-9.png",
        "job.json",
    ]
    assert out.splitlines() == [
        "out/0-parrot-5.png",
        "out/0-parrot-6.png",
        "out/2-t-shirt-7.png",
        "... and 3 more in out",
    ]
    assert "6 images in" in err
    assert np.array_equal(load_png(Path("out/3-great-white-shark-10.png")), fake.image_of(3, 10))


def test_no_class_is_a_class(call, pipeline):
    assert call("--class", "none")[1] == "var-none-0.png\n"
    assert pipeline.made == [(6, 0)]


def test_classes_of_one_label_get_different_names(call):
    call("--class", "1,4", "--out", "x")
    assert names("x") == ["1-crane-1-0.png", "4-crane-4-1.png", "job.json"]


def test_a_bundle_without_labels(call, monkeypatch):
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert call("--class", 3)[1] == "var-3-0.png\n"
    assert call("--class", "0-1")[0] == 0
    assert names("out") == ["0-0.png", "1-1.png", "job.json"]
    assert "no labels" in error_of(call("--class", "parrot"))


def test_batches_are_no_larger_than_asked(call, pipeline):
    assert call("--class", "all", "--batch", 4)[0] == 0
    assert pipeline.loads[0].options["max_batch"] == 4
    assert len(pipeline.made) == 6
    assert pipeline.loads[0].closed


def test_options_reach_the_pipeline(call, pipeline):
    call("--class", 0, "--threads", 2, "--provider", "cuda", "--form", "fused", "--batch", 3)
    assert pipeline.loads[0].options == {"provider": "cuda", "threads": 2, "form": "fused", "max_batch": 3}


# --- where the files go


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("{label}/{seed}.png", ["crane-1/1.png", "parrot/0.png"]),
        ("a/b-{index:03d}.png", ["a/b-000.png", "a/b-001.png"]),
        ("{class:04d}-{{x}}.png", ["0000-{x}.png", "0001-{x}.png"]),
        ("folder", ["folder/0-parrot-0.png", "folder/1-crane-1-1.png", "folder/job.json"]),
        ("deep/er/", ["deep/er/0-parrot-0.png", "deep/er/1-crane-1-1.png", "deep/er/job.json"]),
        ("v1.5", ["v1.5/0-parrot-0.png", "v1.5/1-crane-1-1.png", "v1.5/job.json"]),
    ],
)
def test_out_names_the_files(call, out, files):
    assert call("--class", "0-1", "--out", out)[0] == 0
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == files


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("a.png", "one file for 2 images: name a folder, or add --grid"),
        ("a.jpg", "images are written as .png"),
        ("{label.__class__}.png", "the fields are {class}, {label}, {seed}, {index}"),
        ("{name}.png", "the fields are"),
        ("{}.png", "the fields are"),
        ("{seed!r}.png", "the fields are"),
        ("{seed:{index}}.png", "the fields are"),
        ("{label:d}.png", "no valid pattern"),
        ("{seed.png", "no valid pattern"),
        ("{label}", "must end in .png"),
        ("x{{y}}.png", "add {seed} or {index}"),
        ("file", "is a file"),
    ],
)
def test_an_out_that_cannot_be_is_one_line(call, pipeline, out, says):
    Path("file").write_text("")
    assert says in error_of(call("--class", "0-1", "--out", out))
    assert names() == ["file"]
    assert not pipeline.loads


def test_a_pattern_resumes_too(call, pipeline):
    for _ in range(2):
        assert call("--class", "0-3", "--out", "{label}.png")[0] == 0
    assert len(pipeline.made) == 4


def test_a_grid_beside_the_images(call):
    assert call("--class", "0-2", "--grid")[0] == 0
    picture = load_png(Path("out/grid.png"))
    assert picture.shape == (22, 22, 3)
    assert np.array_equal(picture[2:10, 12:20], fake.image_of(1, 1))
    assert (picture[10:12] == 255).all()
    assert call("--class", 0, "--grid")[1] == "var-parrot-0.png\nvar-parrot-0-grid.png\n"
    assert call("--class", "0-1", "--grid", "--out", "x/y-{seed}.png")[0] == 0
    assert names("x") == ["grid.png", "y-0.png", "y-1.png"]


def test_a_grid_in_one_file(call, pipeline):
    assert call("--class", "0-2", "--grid", "--out", "g.png")[1] == "g.png\n"
    assert names() == ["g.png"]
    assert load_png(Path("g.png")).shape == (22, 22, 3)
    assert read_png_text(Path("g.png"))["classes"] == "[0, 1, 2]"
    assert "--overwrite" in error_of(call("--class", "0-3", "--grid", "--out", "g.png"))


def test_previews_show_every_scale(call):
    assert call("--class", "0-1", "--preview")[0] == 0
    picture = load_png(Path("out/1-crane-1-1-preview.png"))
    assert picture.shape == (12, 32, 3)
    assert (picture[2:10, 2:10] == 0).all()
    assert (picture[2:10, 12:20] == 50).all()
    assert np.array_equal(picture[2:10, 22:30], fake.image_of(1, 1))
    assert np.array_equal(load_png(Path("out/1-crane-1-1.png")), fake.image_of(1, 1))
    assert call("--class", 0, "--preview")[1] == "var-parrot-0.png\nvar-parrot-0-preview.png\n"


# --- arrays and tokens


def test_npz(call):
    assert call("--class", "0-1", "--count", 3, "--npz", "a.npz", "--batch", 4)[1] == "a.npz\n"
    assert names() == ["a.npz"]
    with np.load("a.npz") as saved:
        assert saved.files == ["arr_0"]
        expected = np.stack([fake.image_of(k // 3, k) for k in range(6)])
        assert np.array_equal(saved["arr_0"], expected)


def test_saved_tokens_hold_what_decided_them(call):
    assert call("--class", "2,5", "--seed", 2**63, "--save-tokens", "t.npz")[0] == 0
    with np.load("t.npz") as saved:
        types = {name: (saved[name].dtype.name, saved[name].shape) for name in saved.files}
        assert types == {
            "tokens": ("int64", (2, 21)),
            "uniforms": ("float32", (2, 21)),
            "seeds": ("uint64", (2,)),
            "classes": ("int64", (2,)),
        }
        assert saved["seeds"].tolist() == [2**63, 2**63 + 1]
        assert saved["classes"].tolist() == [2, 5]
        assert np.array_equal(saved["tokens"][1], fake.tokens_of(5, 2**63 + 1))
        assert np.array_equal(saved["uniforms"], uniforms([2**63, 2**63 + 1], 21))


def test_tokens_become_images_again(call):
    call("--class", "2,5", "--save-tokens", "t.npz")
    assert call("--tokens", "t.npz")[1] == "decoded/2-t-shirt-0.png\ndecoded/5-7-up-1.png\n"
    assert (load_png(Path("decoded/5-7-up-1.png")) == fake.tokens_of(5, 1)[0]).all()
    assert call("--tokens", "t.npz", "--npz", "images.npz", "--json")[0] == 0
    with np.load("images.npz") as saved:
        assert saved["arr_0"].shape == (2, 8, 8, 3)


def test_tokens_alone_are_enough(call):
    np.savez("t.npz", tokens=np.full((1, 21), 7, np.int16))
    assert call("--tokens", "t.npz")[1] == "t-decoded.png\n"
    np.savez("t{2}.npz", tokens=np.array([np.full(21, 1), np.full(21, 2)]))
    assert call("--tokens", "t{2}.npz")[1] == "decoded/00000.png\ndecoded/00001.png\n"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros(3)}, "no array called tokens"),
        ({"tokens": np.zeros((2, 20), np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros((0, 21), np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros(21, np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros((2, 21))}, "integers"),
        ({"tokens": np.full((2, 21), 64)}, "0 to 63"),
        ({"tokens": np.zeros((2, 21), np.int64), "classes": np.zeros(3, np.int64)}, "classes must be one integer"),
        ({"tokens": np.array([{}])}, "no .npz file of tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_one_line(call, arrays, says):
    np.savez("t.npz", **arrays)
    assert says in error_of(call("--tokens", "t.npz"))


def test_a_token_file_that_is_none_is_one_line(call):
    Path("t.npz").write_text("text")
    np.save("t.npy", np.zeros((2, 21), np.int64))
    for name in ("t.npz", "t.npy", "absent.npz", "."):
        assert "cannot read" in error_of(call("--tokens", name))


def test_reconstruct(call):
    Image.new("RGB", (40, 20), (100, 150, 200)).save("photo.jpg", quality=100)
    code, out, err = call("--reconstruct", "photo.jpg")
    assert (code, out) == (0, "photo-reconstructed.png\n")
    assert "PSNR" in err
    assert load_png(Path("photo-reconstructed.png")).shape == (8, 8, 3)
    assert json.loads(call("--reconstruct", "photo.jpg", "--json", "--out", "x.png")[1])["psnr_db"] > 0
    assert "cannot read absent.png" in error_of(call("--reconstruct", "absent.png"))


# --- interruption


def test_ctrl_c_says_how_far_it_came(call, pipeline):
    pipeline.interrupt_at = 4
    code, out, err = call("--class", "all", "--batch", 2)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: 4 of 6 images are done, the same command continues"
    pipeline.interrupt_at = None
    code, _, err = call("--class", "all", "--batch", 2)
    assert code == 0
    assert "2 images in" in err
    assert "4 were there" in err
    assert len(set(pipeline.made)) == len(pipeline.made) == 6
    assert "nothing to make: all 6 images are there" in call("--class", "all", "--batch", 2)[2]
    assert len(pipeline.loads) == 2  # the third run needed no engine


def test_another_job_in_the_folder_is_refused(call):
    call("--class", "0-2")
    assert "holds another job" in error_of(call("--class", "0-3"))
    assert call("--class", "0-3", "--overwrite")[0] == 0


def start(folder, *args, delay=0.05):
    # The environment is inherited: the fake needs the project's interpreter and nothing else.
    command = [sys.executable, str(FAKE), *args]
    environment = {**os.environ, "FAKE_DELAY": str(delay)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("route", ["folder", "npz"])
def test_kill_9_loses_nothing_and_leaves_nothing_half(tmp_path, route):
    args = ["--class", "all", "--count", "10", "--batch", "2", "--save-tokens", "t.npz"]
    args += ["--npz", "a.npz"] if route == "npz" else ["--out", "x"]
    progress = tmp_path / "t.npz.partial" / "done"
    done = lambda: sum(progress.read_bytes()) if progress.exists() else 0  # noqa: E731
    reached = 0
    for kill_at in (6, 20, 40):
        process = start(tmp_path, *args)
        wait_until(lambda at=kill_at: done() >= at, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert reached < done() < 60
        reached = done()
        assert not (tmp_path / "a.npz").exists()
        for path in (tmp_path / "x").glob("*.png") if route == "folder" else []:
            assert read_png_text(path)["key"]  # whole
    process = start(tmp_path, *args, "--json", delay=0)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["images_made"] <= 60 - reached
    if route == "npz":
        assert names(tmp_path) == ["a.npz", "t.npz"]
        images = np.load(tmp_path / "a.npz")["arr_0"]
    else:
        assert len(names(tmp_path / "x")) == 61
        assert not [name for name in names(tmp_path / "x") if name.startswith(".")]
        by_seed = {int(path.stem.rsplit("-", 1)[1]): path for path in (tmp_path / "x").glob("*.png")}
        images = [load_png(by_seed[k]) for k in range(60)]
    assert all(np.array_equal(images[k], fake.image_of(k // 10, k)) for k in range(60))
    assert np.array_equal(np.load(tmp_path / "t.npz")["tokens"], [fake.tokens_of(k // 10, k) for k in range(60)])


def test_a_real_ctrl_c(tmp_path):
    process = start(tmp_path, "--class", "all", "--count", "10", "--batch", "1")
    wait_until(lambda: (tmp_path / "out" / "0-parrot-1.png").exists(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 60 images are done, the same command continues" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_second_process_is_told_to_wait(tmp_path):
    args = ["--class", "all", "--count", "10", "--batch", "1"]
    first = start(tmp_path, *args)
    wait_until(lambda: (tmp_path / "out" / "0-parrot-0.png").exists(), first)
    second = start(tmp_path, *args, delay=0)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is writing to out" in err
    first.kill()
    first.communicate()


# --- the report


def test_json_is_one_document_and_nothing_else(call):
    code, out, _ = call("--class", "0-2", "--batch", 2, "--json", "--threads", 1, "--seed", 4)
    document = json.loads(out)
    assert code == 0
    assert document["files"] == ["out/0-parrot-4.png", "out/1-crane-1-5.png", "out/2-t-shirt-6.png"]
    assert (document["images"], document["images_made"]) == (3, 3)
    assert document["settings"] == {
        "bundle": "fake-fp32",
        "build_key": "a1" * 32,
        "precision": "fp32",
        "provider": "cpu",
        "form": "stepwise",
        "cfg": 1.0,
        "top_k": 20,
        "top_p": 0.5,
        "temperature": 1.0,
        "classes": [0, 1, 2],
        "seed": 4,
        "count": 1,
        "batch": 2,
        "threads": 1,
    }
    timings = document["timings"]
    assert timings["scales_s"] == pytest.approx([0.2, 0.4, 0.6])  # of two batches
    assert (timings["cond_s"], timings["decode_s"]) == pytest.approx((0.02, 0.1))
    assert timings["outside_s"] == pytest.approx(0.08)
    assert min(timings["load_s"], timings["total_s"]) > 0
    assert 10e6 < document["peak_memory_bytes"] < 100e9
    assert document["bundle"]["name"] == "fake-fp32"
    assert set(document["versions"]) == {"var_export", "python"}
    assert document["runtime"] == {"onnxruntime": "0.fake", "provider": "cpu"}


def test_json_of_a_job_that_was_done(call):
    call("--class", "0-2")
    document = json.loads(call("--class", "0-2", "--json")[1])
    assert (document["images"], document["images_made"], document["runtime"]) == (3, 0, None)
    assert document["timings"]["scales_s"] is None


def test_errors_leave_stdout_empty_under_json(call):
    error_of(call("--class", "99", "--json"))


def test_list_classes(call, pipeline, monkeypatch):
    out = call("--list-classes")[1]
    assert out.splitlines()[:2] == ["class  label", "    0  parrot"]
    assert len(out.splitlines()) == 7
    document = json.loads(call("--list-classes", "--json")[1])
    assert document["classes"][2] == {"index": 2, "label": "t-shirt"}
    assert document["unconditional"] == 6
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert "0 to 5, without labels" in call("--list-classes")[1]
    assert not pipeline.loads


# --- mistakes


def test_no_class_given_is_one_line(call):
    assert "--class CLASS" in error_of(call())
    assert "--class CLASS" in error_of(call("--seed", 3))


@pytest.mark.parametrize(
    "args",
    [
        "--class 0 --tokens t.npz",
        "--class 0 --reconstruct a.png",
        "--class 0 --list-classes",
        "--tokens t.npz --reconstruct a.png",
        *(
            f"{mode} {option}"
            for mode in ("--tokens t.npz", "--reconstruct a.png", "--list-classes")
            for option in (
                "--seed 0",
                "--count 1",
                "--cfg 1",
                "--top-k 1",
                "--top-p 1",
                "--temperature 1",
                "--form stepwise",
                "--preview",
                "--save-tokens s.npz",
            )
        ),
        "--reconstruct a.png --grid",
        "--reconstruct a.png --npz a.npz",
        "--reconstruct a.png --batch 2",
        "--list-classes --out a.png",
        "--list-classes --grid",
        "--list-classes --npz a.npz",
        "--list-classes --overwrite",
        "--list-classes --threads 1",
        "--list-classes --provider cuda",
        "--class 0 --npz a.npz --out a.png",
        "--class 0 --npz a.npz --grid",
        "--class 0 --npz a.npz --preview",
    ],
)
def test_options_that_exclude_each_other(call, pipeline, args):
    assert "cannot be combined" in error_of(call(*args.split()))
    assert names() == []
    assert not pipeline.loads


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--class 0 --seed -1", "--seed"),
        ("--class 0 --seed 1.5", "--seed"),
        ("--class 0 --seed 18446744073709551616", "seeds run from"),
        ("--class 0 --count 0", "--count"),
        ("--class 0 --batch 0", "--batch"),
        ("--class 0 --threads 0", "--threads"),
        ("--class 0 --cfg nan", "cfg"),
        ("--class 0 --cfg -1", "cfg"),
        ("--class 0 --cfg high", "--cfg"),
        ("--class 0 --temperature 0", "temperature"),
        ("--class 0 --top-p 2", "top_p"),
        ("--class 0 --top-k -1", "top_k"),
        ("--class 0 --top-k 65", "top_k"),
        ("--class 0 --form sideways", "--form"),
        ("--class 0 --colour red", "--colour"),
        ("--class 0 extra", "extra"),
        ("--class 6", "0 to 5"),
        ("--class crane", "1 and 4"),
        ("--class parot", "did you mean parrot?"),
        ("--class 0-1 --preview --grid --out a.png", "--preview"),
        ("--class 0 --preview --form fused", "--preview"),
        ("--class 0 --npz a.txt", "must be called .npz"),
        ("--class 0 --save-tokens a.txt", "must be called .npz"),
        ("--class all --count 1000000 --grid", "grid"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(call, pipeline, args, says):
    assert says in error_of(call(*args.split()))
    assert names() == []
    assert not pipeline.loads


def test_a_missing_bundle_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "0", "--engine", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("Error: there is no bundle at nowhere")


def test_bugs_keep_their_traceback(call, monkeypatch):
    monkeypatch.setattr(fake.FakePipeline, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("--class", 0)


# --- the border that the commands share


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BackendError("no\n  such provider"), 2, "Error: no such provider"),
        (CheckFailedError("cosine 0.9"), 1, "Error: cosine 0.9"),
        (click.BadParameter("bad"), 2, "Error: Invalid value: bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_guarded_turns_errors_into_one_line(capsys, error, code, line):
    @click.command()
    def command():
        raise error

    assert common.guarded(command, "x")([]) == code
    assert capsys.readouterr().err.strip() == line


def test_guarded_passes_exit_codes(capsys):
    @click.group()
    def group():
        pass

    @group.command()
    @click.pass_context
    def fail(context):
        context.exit(3)

    @group.command()
    def succeed():
        pass

    main = common.guarded(group, "x")
    assert (main(["fail"]), main(["succeed"]), main(["--help"])) == (3, 0, 0)


def test_tables_are_aligned(capsys):
    common.print_table([("a", 1), ("long", 200)], ("name", "n"))
    assert capsys.readouterr().out == "name    n\na       1\nlong  200\n"
    common.print_table([], ("name", "n"))
    assert capsys.readouterr().out == "name  n\n"


# --- a fresh process


def fresh(*args, code="from engines.cli.run import main; raise SystemExit(main())"):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


def test_help_and_version_are_light():
    code = "import sys; from engines.cli.run import main; main(); print(sorted(sys.modules))"
    for option in ("--help", "--version"):
        result = fresh(option, code=code)
        assert result.returncode == 0, result.stderr
        for heavy in ("numpy", "PIL", "onnxruntime", "engines.pipeline"):
            assert f"'{heavy}'" not in result.stdout


def test_help_names_every_option():
    text = fresh("--help").stdout
    for option in ("--class", "--npz", "--reconstruct", "--preview", "--overwrite", "--json", "Examples:"):
        assert option in text


def test_a_closed_pipe_is_no_traceback(tmp_path):
    command = f"{sys.executable} {FAKE} --list-classes | head -1"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert result.stdout == "class  label\n"
    assert "Traceback" not in result.stderr


# --- the embedded demo

demo = pytest.mark.skipif(
    not (DEMO_BUNDLE / "manifest.json").exists(), reason=f"no demo bundle in {DEMO_BUNDLE}: build it with var-export"
)


@demo
def test_demo_image_is_the_same_alone_and_in_a_job(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "88", "--seed", "3", "--out", "alone.png"]) == 0
    assert main(["--class", "87-88", "--count", "2", "--seed", "1", "--out", "job", "--batch", "3"]) == 0
    capsys.readouterr()
    image = load_png(Path("alone.png"))
    assert image.shape == (64, 64, 3)
    assert image.std() > 1
    (same,) = Path("job").glob("*88-*-3.png")
    assert np.array_equal(load_png(same), image)


@demo
def test_demo_tokens_decode_to_the_same_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "rose", "--save-tokens", "t.npz", "--preview"]) == 0
    assert main(["--tokens", "t.npz"]) == 0
    drawn, decoded = (load_png(Path(name)).astype(int) for name in ("var-rose-0.png", "t-decoded.png"))
    assert np.abs(drawn - decoded).max() <= 1
    capsys.readouterr()


@demo
def test_demo_reports_and_reconstructs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "ghost", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["timings"]["scales_s"]) == 7
    assert document["timings"]["total_s"] >= sum(document["timings"]["scales_s"])
    assert document["runtime"]["provider"]
    assert main(["--reconstruct", "var-ghost-0.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_db"] > 15
