"""First days of twelve people, three of each kind: what they type, in order, in one folder, works.

It is refused where a line says so alone. What they brought or renamed is there at the end as they left it.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main as var_run
from var_export.cli.main import main as var_export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO_BUNDLE / "manifest.json").exists(), reason="no demo bundle: build it with var-export"),
]
MAINS = {"var-run": var_run, "var-export": var_export}
DAYS = {
    "a newcomer explores": """
        var-run --class 88
        var-run --class 88
        var-run parrot --seed 1
        var-run parrot --cfg 2
        var-run parrot -n 4 --grid
        mv out/00002-parrot-2.png out/favourite.png
        var-run frog -n 2 --grid
        var-run parrot -n 5 --grid
        var-run "hot dog" --seed random -o lunch.jpg
        var-run lunch.jpg.is.no.class ; refused
        var-run classes
    """,
    "a newcomer edits": """
        var-run dog-face -o dog.png
        var-run edit dog.png --box 0,0.5,1,1 --class fox
        var-run edit dog.png --box 0,0.5,1,1 --class fox --seed 1
        var-run edit dog.png --box 0,0.5,1,1 --class owl,none -n 2 --grid
        var-run edit dog.png --box 0.2,0.25,0.8,0.75 --outpaint --class panda
        var-run edit photo.jpg --mask mask.png --grow 4 --class frog --preview-as gif
        var-run edit photos --box 0,0,0.5,0.5
        var-run reconstruct photo.jpg
        var-export inspect dog-edited.png
    """,
    "a newcomer compares settings": """
        var-run frog --cfg 1,2,4
        var-run frog --cfg 1,2,4 --top-p 0.4,0.9
        var-run frog,owl --temperature 0.5,1 -n 2
        var-run frog --preview
        var-run frog --preview-as webp
        var-run frog --preview-as webp --overwrite
        var-export list
        var-export doctor --no-run
    """,
    "a researcher brings a checkpoint": """
        var-export estimate --model CHECKPOINT
        var-export inspect TINY
        var-export verify TINY
        var-run 1 --bundle TINY
        var-run 1,2 -n 3 --bundle TINY --form fused
        var-run all -n 4 --bundle TINY --npz fid.npz
        var-run all -n 8 --bundle TINY --npz fid.npz
    """,
    "a researcher collects tokens": """
        var-run 0-4 --bundle TINY --save-tokens tokens.npz
        var-run decode tokens.npz --bundle TINY
        var-run decode tokens.npz --bundle TINY --npz pixels.npz
        var-run all --bundle TINY --top-k 1 -o "greedy/{class}.png"
        var-run all --bundle TINY --top-k 1 -o "greedy/{class}.png"
        var-export inspect TINY --json
    """,
    "a researcher measures": """
        var-export bench TINY --runs 3 --batch 1 --warmup 0
        var-export bench TINY --runs 3 --batch 1 --warmup 0 --json
        var-export verify TINY --html report.html
        var-export verify TINY --html report.html
        var-export verify TINY --json
    """,
    "a service engineer writes a repository": """
        var-export triton TINY --repository models
        var-export inspect TINY --graphs
        var-run 1 --bundle TINY --json
        var-run 1 --bundle TINY --json
    """,
    "a service engineer runs jobs": """
        var-run all -n 1 --batch 16 -o job
        var-run all -n 1 --batch 16 -o job
        rm job/00003-*.png
        var-run all -n 1 --batch 16 -o job --json
        var-run frog -o job
        var-run frog -n 2 -o "{label}/{seed}.webp" --grid
        var-run owl -n 2 -o "{label}/{seed}.webp" --grid
    """,
    "a service engineer scripts pictures": """
        var-run --class parrot --out a.png
        var-run --class parrot --out a.png
        var-run --class parrot --out a.png --cfg 3 ; refused
        var-run --class parrot --out a.png --cfg 3 --overwrite
        var-export inspect a.png --json
    """,
    "a Jetson engineer sizes": """
        var-export estimate --model d30 --precision fp16 --batch 8 --device orin-nano-8gb
        var-export estimate --model d16 --precision int8 --device orin-nano-8gb
        var-export estimate --model TINY --device orin-nano-8gb --json
        var-export doctor --no-run --json
    """,
    "a Jetson engineer copies a bundle": """
        cp TINY bundles/mine
        var-export list
        var-run 1
        var-run 1 --check always
        var-run 1 --check never --threads 1 --seed 2
        cp DEMO bundles/other
        var-run 1
        var-export list --json
    """,
    "a Jetson engineer looks for what is wrong": """
        var-export inspect bundles ; refused
        cp TINY bundles/mine
        var-run 1 --bundle bundles ; refused
        var-run 1 --bundle bundles/mien ; refused
        var-run 1 --bundle bundles/mine
        var-run parrot --bundle bundles/mine ; refused
        var-export verify bundles/mine
    """,
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    photo = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).resize((300, 200))
    photo.save("photo.jpg")
    Path("photos").mkdir()
    photo.save("photos/one.png")
    photo.rotate(90, expand=True).save("photos/two.webp")
    mask = np.zeros((200, 300), np.uint8)
    mask[50:150, 100:200] = 255
    Image.fromarray(mask).save("mask.png")
    for folder in ("out", "edited", "job"):  # of theirs, where a command would write
        Path(folder).mkdir()
        Path(folder, "notes.txt").write_text(folder)
    return tmp_path


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("day", DAYS)
def test_a_first_day(day, desk, tiny_build, tiny_checkpoint, capsys):
    shutil.copytree(tiny_build.path, desk / "tiny")
    names = {"TINY": desk / "tiny", "CHECKPOINT": tiny_checkpoint, "DEMO": DEMO_BUNDLE}
    own = files_of(desk)
    for line in filter(None, map(str.strip, DAYS[day].splitlines())):
        line, _, wanted = line.partition(" ; ")
        program, *words = [str(names.get(word, word)) for word in shlex.split(line)]
        if program == "mv":
            Path(words[0]).rename(words[1])
            own[desk / words[1]] = (desk / words[1]).read_bytes()
        elif program == "cp":
            shutil.copytree(*words)
        elif program == "rm":
            (gone,) = Path().glob(words[0])
            gone.unlink()
        else:
            code = MAINS[program](words)
            said = capsys.readouterr()
            errors = [line for line in said.err.splitlines() if line.startswith("Error: ")]
            assert (code, len(errors)) == ((2, 1) if wanted else (0, 0)), (line, said.err)
            if "--json" in words:
                json.loads(said.out)
        assert {path: content for path, content in own.items() if path.read_bytes() != content} == {}, line
