"""Every mistake is one line and makes nothing."""

import pytest
import var_run_fake as fake
from var_run_fake import error_of, names

from engines.cli.run import main


def test_no_class_given_is_one_line(call):
    assert "give a class, as var-run parrot" in error_of(call())
    assert "give a class, as var-run parrot" in error_of(call("--seed", 3))


@pytest.mark.parametrize(
    "args",
    [
        "0 --npz a.npz --out a.png",
        "0 --npz a.npz --grid",
        "0 --npz a.npz --preview",
        "0 --npz a.npz --preview-as gif",
        "decode t.npz --npz a.npz --grid",
        *(f"0 --url triton://x {option}" for option in ("--bundle b", "--form fused", "--threads 1", "--check never")),
        "classes --url triton://x --bundle b",
    ],
)
def test_options_that_exclude_each_other(call, pipeline, args):
    assert "cannot be combined" in error_of(call(*args.split()))
    assert names() == []
    assert not pipeline.loads


@pytest.mark.parametrize(
    "args",
    [
        *(
            f"{command} {option}"
            for command in ("decode t.npz", "reconstruct a.png", "classes")
            for option in ("--seed 0", "--count 1", "--cfg 1", "--form stepwise", "--preview", "--save-tokens s.npz")
        ),
        "reconstruct a.png --grid",
        "reconstruct a.png --npz a.npz",
        "reconstruct a.png --batch 2",
        "classes --out a.png",
        "classes --grid",
        "classes --overwrite",
        "classes --threads 1",
        "edit a.png --box 0,0,1,.5 --npz a.npz",
        "0 --box 0,0,1,.5",
        "0 --outpaint",
    ],
)
def test_a_command_has_no_options_that_mean_nothing_to_it(call, pipeline, args):
    assert "No such option" in error_of(call(*args.split()))
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
        ("--class 0 --smooth", "fake-fp32 was built without smoothing"),
        ("--class 0 --cfg-scales -1", "cfg_scales must be 0 or more"),
        ("--class 0 --cfg-scales all", "--cfg-scales"),
        ("--class 0 --cfg-scales 2 --form fused", "cfg_scales needs the stepwise form: --form stepwise"),
        ("--class 0 --cfg-scales 0,1 --cfg 0,1 --form fused", "cfg_scales needs the stepwise form"),
        ("--class 0 --form sideways", "--form"),
        ("--class 0 --colour red", "--colour"),
        ("--class 0 extra", "no class is called 'extra'"),
        ("--class 6", "0 to 5"),
        ("--class crane", "1 and 4"),
        ("--class parot", "did you mean parrot?"),
        ("edti a.png --box 0,0,1,.5", "no command is called 'edti': did you mean edit?"),
        ("recon a.png", "no command is called 'recon': did you mean reconstruct?"),
        ("edti", "no class is called 'edti'"),
        ("St. a.b", "no class is called 'St.'"),
        ("--class=9 --out=x.png", "class 9 is out of range"),
        ("--class St.Bernard --out x.png", "no class is called 'St.Bernard'"),
        ("--class 0-1 --preview --grid --out a.png", "--preview"),
        ("--class 0 --preview --form fused", "--preview"),
        ("--class 0 --npz a.txt", "must be called .npz"),
        ("--class 0 --save-tokens a.txt", "must be called .npz"),
        ("--class all --count 1000000000", "too many"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(call, pipeline, args, says):
    assert says in error_of(call(*args.split()))
    assert names() == []
    assert not pipeline.loads


def test_a_missing_bundle_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "0", "--bundle", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("Error: there is no bundle at nowhere")


def test_bugs_keep_their_traceback(call, monkeypatch):
    monkeypatch.setattr(fake.FakePipeline, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("--class", 0)
