"""The one reader of files that others wrote: JSON, Python literals, text, arrays and pictures.

    file --> does it look as its kind does, within limits? --> plain values, arrays, a picture

Nothing else opens such a file, but what needs another package for it: `var_export/checkpoint/files.py` for checkpoints
(PyTorch), `calib/graphs/layers.py` for graphs (onnx-ir). Whatever can go wrong becomes one line that names the file.
What a file declares of its size is checked before memory is taken for it. What comes out has the form of its kind;
what it means is the caller's to check.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engines.errors import UsageError, VarExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

MALFORMED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What code raises that takes a plain document apart which is not as it should be."""

TEXT_BYTES = 1 << 26  # the largest honest ones: COCO's instances_val2017.json has 20 MB
MAX_DEPTH = 100
LITERAL_CHARACTERS = 1 << 22  # the 21,000 labels of all of ImageNet take a million
MAX_CONTAINERS = 4_000_000  # of JSON; an empty list of three bytes takes 64 in memory
ARRAYS_BYTES = 1 << 29
MAX_PIXELS = 178_956_970  # where Pillow stops by itself
# Without those that start another program (EPS) or exist on one system only.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_REASON = 200
_PIECE = 1 << 16
Accept = Callable[[str, "np.dtype[Any]", tuple[int, ...]], None]
"""Called with name, type and shape of an array that is to be read; raises `ValueError` where it is not as wanted."""


@contextmanager
def reading(file: object, what: str, *, error: type[UsageError] = UsageError, remedy: str = "") -> Iterator[None]:
    """Around code that takes a foreign file apart: whatever it raises becomes one line.

    Args:
        file: how messages call the file.
        what: what it should be: `it is no WHAT (...)`.
        error: what is raised.
        remedy: what the user can do, for the end of the message.
    """
    try:
        yield
    except VarExportError:
        raise
    except Exception as raised:  # libraries raise anything: struct.error, zlib.error, RuntimeError, SyntaxError, ...
        raise error(f"cannot read {file}: {_why(raised, what)}{f'; {remedy}' if remedy else ''}") from raised


def read_bytes(file: Path, limit: int = TEXT_BYTES) -> bytes:
    """The content of a file, in `reading`. Raises `OSError`, and `ValueError` where there is more than `limit`."""
    data = bytearray()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            data += piece
            if len(data) > limit:
                raise ValueError(f"it has more than {limit / 2**20:.0f} MiB")
    return bytes(data)


def read_json(file: Path, *, error: type[UsageError] = UsageError, remedy: str = "") -> Any:
    """The JSON document in a file. Raises `error` where there is none; `remedy`: see `reading`."""
    with reading(file, "JSON file", error=error, remedy=remedy):
        return parse_json(read_bytes(file))


def parse_json(text: str | bytes) -> Any:
    """The JSON document in a text. Raises `ValueError` where it is none, nests deeply, or has text of no Unicode."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS} lists and objects")
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        if not level:
            break
        inside = (item for each in level for item in (each.values() if isinstance(each, dict) else each))
        level = [item for item in inside if isinstance(item, dict | list)]
    else:
        raise ValueError(f"it nests more than {MAX_DEPTH} levels deep")
    if _SURROGATE.search(text):
        json.dumps(document, ensure_ascii=False).encode()
    return document


def parse_python(text: str) -> Any:
    """The value of a Python literal, such as the text that `print` shows of a dict. Raises `ValueError`."""
    if len(text) > LITERAL_CHARACTERS:
        raise ValueError(f"it has more than {LITERAL_CHARACTERS} characters")
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("it is no list, dict, text or number as Python writes them") from error


def read_arrays(
    file: Path,
    names: Sequence[str],
    accept: Accept,
    *,
    what: str,
    data: bytes | None = None,
    optional: bool = False,
    error: type[UsageError] = UsageError,
    remedy: str = "",
) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name, without pickles.

    Args:
        file: the file.
        names: the arrays that are wanted, in the order in which they are accepted and read.
        accept: see `Accept`; called before an array takes memory.
        what: what the file should be.
        data: the content of the file, for who has read it already.
        optional: leave out what is not there, instead of raising.
        error: what is raised.
        remedy: see `reading`.
    """
    from numpy.lib import format as npy

    with (
        reading(file, what, error=error, remedy=remedy),
        zipfile.ZipFile(file if data is None else io.BytesIO(data)) as archive,
    ):
        members = {member.filename: member for member in archive.infolist()}
        size = file.stat().st_size if data is None else len(data)
        left = max(ARRAYS_BYTES, 4 * size)  # what is compressed rarely shrinks to a quarter
        arrays = {}
        for name in names:
            member = members.get(f"{name}.npy")
            if member is None:
                if optional:
                    continue
                raise ValueError(f"it has no array {name}")
            with archive.open(member) as stream:
                dtype, shape = _npy_header(stream)
                accept(name, dtype, shape)
                size = math.prod(shape) * dtype.itemsize
                if size != (there := member.file_size - stream.tell()):
                    raise ValueError(f"{name} says that it has {size} bytes, and has {there}")
                left -= size
                if left < 0:
                    raise ValueError("its arrays are too large")
            with archive.open(member) as stream:
                arrays[name] = npy.read_array(stream, allow_pickle=False)
        return arrays


@contextmanager
def open_array(file: Path, name: str, *, what: str) -> Iterator[tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]]:
    """One array of an .npz file as a stream of its bytes, with its type and shape: for what may not fit in memory.

    Raises `UsageError` where the file has no such plain array; `what`: what it should be.
    """
    with reading(file, what), zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
        yield stream, *_npy_header(stream)


def read_exactly(stream: IO[bytes], size: int, file: object) -> bytes:
    """The next `size` bytes of an array that `open_array` gave. Raises `UsageError` where `file` ends before."""
    data = stream.read(size)
    if len(data) != size:
        raise UsageError(f"{file} ends too early: copy it once more")
    return data


def names_in(file: Path) -> list[str]:
    """The arrays of an .npz file, in its order. Raises `UsageError` where the file is none."""
    with reading(file, ".npz file"), zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_comment(file: Path) -> bytes:
    """The comment of a zip archive. Raises `UsageError` where the file is none."""
    with reading(file, "zip archive"), zipfile.ZipFile(file) as archive:
        return archive.comment


@contextmanager
def open_picture(
    file: Path | str, formats: Sequence[str] = FORMATS, *, stream: IO[bytes] | None = None
) -> Iterator[Image.Image]:
    """A picture, not decoded yet; what goes wrong in the block is about the file as well. Raises `UsageError`.

    `stream`: its bytes, which came another way; `file` is then what messages call it.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    known = [name for name in formats if name in Image.OPEN]
    with reading(file, "picture that can be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures, odd EXIF data: the picture counts
        if stream is None and (Path(file).is_dir() or not Path(file).exists()):
            what = "it is a folder, not a picture" if Path(file).is_dir() else "there is no such file"
            raise UsageError(f"cannot read {file}: {what}")
        try:
            with Image.open(file if stream is None else stream, formats=known) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield image
        except UnidentifiedImageError:
            raise UsageError(f"cannot read {file}: it is not a picture in a known format") from None
        except Image.DecompressionBombError:
            raise UsageError(
                f"cannot read {file}: it has more than {MAX_PIXELS // 10**6} million pixels; save a smaller copy of it"
            ) from None


def pictures_in(folder: Path) -> list[Path]:
    """The files in a folder that are pictures by their names' endings, in the order of their names.

    Raises `UsageError` where there are none, or the folder cannot be read.
    """
    from PIL import Image

    Image.init()
    endings = {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}
    with reading(folder, "folder"):
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings and file.is_file())
    found = [file for file in found if not file.name.startswith(".")]
    if not found:
        raise UsageError(f"{folder} has no pictures")
    return found


def _npy_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of a plain array; `stream` is behind its header then."""
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array has format {version[0]}.{version[1]}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in "biuf" or any(length < 0 for length in shape):
        raise ValueError(f"an array has type {dtype} and shape {shape}")
    return dtype, shape


def _why(raised: Exception, what: str) -> str:
    if isinstance(raised, OSError) and raised.strerror:
        return raised.strerror
    if isinstance(raised, MemoryError):
        return "it asks for more memory than there is"
    reason = str(raised)[:_MAX_REASON] if not isinstance(raised, KeyError) else ""  # whose text is out of the file
    return f"it is no {what} ({reason or type(raised).__name__})"
