"""`var-export merge`: the shards of a job made one."""

from __future__ import annotations

from pathlib import Path

import click

from engines.cli.common import NamedPath, show, tell
from engines.cli.progress import StageClock
from engines.words import counted

_PATH = NamedPath(path_type=Path)


@click.command()
@click.argument("shards", nargs=-1, required=True, type=_PATH, metavar="SHARD...")
@click.option("-o", "--out", required=True, type=_PATH, metavar="PATH", help="Where the whole goes: .npz, or a folder.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def merge(shards: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Make one .npz file, or one folder, of the SHARDs that var-run --shard K/N drew.

    It is what one machine would have made, byte by byte. The shards stay; they are read in pieces, so that memory stays
    small however many images there are.
    """
    from engines.files import merging

    with StageClock() as clock:
        images = merging.merge(shards, out, overwrite=overwrite, progress=clock)
    tell(f"{counted(images, 'image')} of {counted(len(shards), 'shard')}")
    show(str(out))
