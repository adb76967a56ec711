"""Every module either changes the keys of what is kept, or is listed as one that cannot decide it."""

import shutil

import pytest

from calib import keys
from engines import storage
from engines.storage import ROOT, source_files

LISTS = {"FIGURES": keys.FIGURES, "FLOAT_BUNDLE": keys.FLOAT_BUNDLE, "QUANTISED_BUNDLE": keys.QUANTISED_BUNDLE}


def product_modules():
    """Every Python file that is installed, found without the help of what is tested."""
    packages = [folder for folder in ROOT.iterdir() if (folder / "py.typed").is_file()]
    assert len(packages) == 3
    return {file for package in packages for file in package.rglob("*.py")}


def listed(name):
    """The modules of an entry of a list; there must be some."""
    place = ROOT / name
    found = set(place.rglob("*.py")) if place.is_dir() else {place.with_suffix(".py")}
    assert found <= product_modules(), f"calib/keys.py lists {name}, which is not there"
    assert found, f"calib/keys.py lists {name}, which holds no module"
    return found


@pytest.mark.parametrize("kind", LISTS)
def test_a_module_is_in_the_key_or_in_the_list(kind):
    left_out = set().union(*map(listed, LISTS[kind]))
    digested = set(source_files(keys.PACKAGES, LISTS[kind]))

    def names(files):
        return sorted(file.relative_to(ROOT).as_posix() for file in files)

    assert names(product_modules() - left_out - digested) == [], "in neither"
    assert names(left_out & digested) == [], "in both"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The code of the packages at another place, for the digest to look at."""
    for package in keys.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda folder, names: {"data"} & set(names))
    monkeypatch.setattr(storage, "ROOT", tmp_path)
    return tmp_path


# A module, and whether a change of it is a change of a float bundle, of an INT8 bundle beside its base, of a figure.
DECIDES = {
    "var_export/build.py": (True, False, True),
    "var_export/checkpoint/load.py": (True, False, True),
    "var_export/graphs/step.py": (True, False, True),
    "var_export/golden.py": (True, False, True),
    "var_export/gpu_check/race.py": (False, False, True),
    "var_export/cli/build.py": (False, False, False),
    "var_export/report/page.py": (False, False, False),
    "calib/graphs/fuse.py": (True, True, True),
    "calib/rewrite/integers.py": (False, True, True),
    "calib/observe/collect.py": (False, True, True),
    "calib/judge/search.py": (False, True, True),
    "engines/spec/contract.py": (True, True, True),
    "engines/spec/uniforms.py": (True, True, True),
    "engines/bundle/manifest.py": (True, True, True),
    "engines/storage.py": (True, True, True),
    "engines/draw/loop.py": (False, True, True),
    "engines/backends/onnxruntime/runner.py": (False, True, True),
    "engines/backends/tensorrt/build.py": (False, False, True),
    "engines/files/pictures.py": (False, False, False),
    "engines/serve/app.py": (False, False, False),
    "engines/joining/batch.py": (False, False, False),
    "engines/sizing/cost.py": (False, True, False),  # bytes that INT4 saves
}


@pytest.mark.parametrize("module", DECIDES)
def test_what_a_change_of_a_module_changes(module, copy):
    kinds = (keys.FLOAT_BUNDLE, keys.QUANTISED_BUNDLE, keys.FIGURES)
    before = [keys.code_digest(kind) for kind in kinds]
    with (copy / module).open("a") as file:
        file.write("\n# another line\n")
    assert tuple(keys.code_digest(kind) != old for kind, old in zip(kinds, before, strict=True)) == DECIDES[module]
