"""The original CIFAR-10 archives, python and binary version: the same images under the same names, kept as PNG.

Both hold the images as raw pixels in five training batches and a test batch; an image is called after its batch and
its place there, ``data_batch_1-00042.png``. There is no split for validation; ``catalogue.with_holdout`` makes the
paper's 45,000/5,000.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.entries import Entries, Entry
from resnet_pipeline.sources.file_views import HashingReader, check_md5
from resnet_pipeline.sources.members import Member
from resnet_pipeline.storage.base import Storage

PYTHON, BINARY = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"
WANTED = f"CIFAR-10's {PYTHON} or {BINARY}"

MD5 = {PYTHON: "c58f30108f718f92721af3b95e74349a", BINARY: "c32a1d4ab5d03f1284b67883e8d87530"}
"""As the dataset's page has them."""

_META = {"batches.meta": PYTHON, "batches.meta.txt": BINARY}
_BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
_SIDE, _BYTES = 32, 3 * 32 * 32


def cifar10(container: Container, members: Members, *, check: bool = True) -> Catalogue | None:
    """Return the catalogue, None if there is no ``batches.meta`` or ``batches.meta.txt``.

    ``check`` compares a .tar.gz with the published MD5. Raises RefusedError for a missing or damaged batch.
    """
    # which of the two archives it is, and whether it is the published one
    meta = next((n for n in members.names() if PurePosixPath(n).name in _META), None)
    if meta is None:
        return None
    folder, published = PurePosixPath(meta).parent, _META[PurePosixPath(meta).name]
    md5 = {}
    if check and container.in_sequence:
        md5[published] = _checked_md5(container.storage, members[0].file, container.address, published)
    # all of it fits into memory: 180 MB
    inside = [m for m in members if PurePosixPath(m.name).parent == folder]
    contents = {
        PurePosixPath(m.name).name: data for m, data in zip(inside, read_tables(container, inside), strict=True)
    }
    # the classes' names
    parse, names = (_python, _python_names) if published == PYTHON else (_binary, _binary_names)
    classes = names(contents, container.address)
    if len(classes) != 10:
        raise RefusedError(f"{container.address} names {len(classes)} classes, not CIFAR-10's 10")
    # an entry per image, whose place is its number in its batch
    pixels: dict[str, npt.NDArray[np.uint8]] = {}
    entries = Entries()
    for batch in _BATCHES:
        images, labels = parse(contents, batch, container.address)
        pixels[batch] = images
        split = "test" if batch == "test_batch" else "train"
        for number, label in enumerate(labels):
            member = Member(f"{batch}-{number:05d}.png", batch, number, _BYTES)
            entries.append(Entry(member, split, classes[label]))

    def stream(wanted: Sequence[Entry]) -> Iterator[bytes]:
        return (_png(pixels[entry.member.file][entry.member.offset]) for entry in wanted)

    return Catalogue(
        layout="CIFAR-10",
        address=container.address,
        storage=container.storage,
        entries=entries,
        classes=classes,
        md5=md5,
        stream=stream,
    )


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode raw pixels [3072]: a plane of red, one of green, one of blue, each in rows."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def _checked_md5(storage: Storage, name: str, address: str, published: str) -> str:
    with storage.open(name) as raw:
        found = HashingReader(raw).hexdigest()
    check_md5(address, found, MD5[published])
    return found


Batch = tuple[npt.NDArray[np.uint8], list[int]]
Parse = Callable[[dict[str, bytes], str, str], Batch]


def _checked(images: npt.NDArray[np.uint8], labels: Sequence[int], where: str) -> Batch:
    if images.ndim != 2 or images.shape != (len(labels), _BYTES) or not len(labels):
        raise RefusedError(f"{where} does not hold uint8 images of {_BYTES} bytes, each with a label")
    if not all(0 <= label < 10 for label in labels):
        raise RefusedError(f"{where} holds labels outside of 0..9")
    return images, [int(label) for label in labels]


def _content(contents: dict[str, bytes], name: str, address: str) -> bytes:
    if name not in contents:
        raise RefusedError(f"{address} holds no {name}")
    return contents[name]


def _binary(contents: dict[str, bytes], batch: str, address: str) -> Batch:
    """Parse rows of a byte of label and 3,072 bytes of pixels."""
    data = _content(contents, f"{batch}.bin", address)
    if len(data) % (1 + _BYTES):
        raise RefusedError(f"{batch}.bin of {address} is cut off: its {len(data)} bytes are no whole images")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _BYTES)
    return _checked(rows[:, 1:], rows[:, 0].tolist(), f"{batch}.bin of {address}")


def _binary_names(contents: dict[str, bytes], address: str) -> list[str]:
    text = _content(contents, "batches.meta.txt", address).decode("ascii", "replace")
    return [escaped(name) for name in text.split()]


def _python(contents: dict[str, bytes], batch: str, address: str) -> Batch:
    """Parse a pickled dictionary with ``data`` uint8 [N, 3072] and ``labels``."""
    found = _unpickled(_content(contents, batch, address), f"{batch} of {address}")
    images, labels = found.get("data"), found.get("labels")
    if not isinstance(images, _Array) or not isinstance(labels, list) or not all(type(x) is int for x in labels):
        raise RefusedError(f"{batch} of {address} has no data and labels")
    return _checked(images.pixels, labels, f"{batch} of {address}")


def _python_names(contents: dict[str, bytes], address: str) -> list[str]:
    names = _unpickled(_content(contents, "batches.meta", address), f"batches.meta of {address}").get("label_names")
    if not isinstance(names, list):
        raise RefusedError(f"batches.meta of {address} has no label_names")
    return [escaped(_text(name)) for name in names]


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


class _Type:
    """Stands for a NumPy dtype: its code; byte order and the rest are not needed for bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for a pickled NumPy array, whose own code is never called with what the file says."""

    def __init__(self, *_: Any) -> None:
        self.pixels = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or kind.code not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError("an array that is not uint8")
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Builds arrays of uint8 and Python's own simple types; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for one of four names."""
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _Array
            case ("numpy", "ndarray"):
                return None  # an argument of _reconstruct, never called
            case ("numpy", "dtype"):
                return _Type
            case ("_codecs", "encode"):  # bytes in a pickle that Python 3 wrote for Python 2
                return _latin1
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a simple type")


def _latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _unpickled(data: bytes, where: str) -> dict[str, object]:
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything; a hostile one can call nothing but the above
        raise RefusedError(f"{where} can't be unpickled: {(str(error).splitlines() or ['damaged'])[0]}") from None
    if not isinstance(found, dict):
        raise RefusedError(f"{where} holds no dictionary")
    return {_text(key): value for key, value in found.items()}
