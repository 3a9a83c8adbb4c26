"""Reading picture files: orientation, alpha, palettes, 16 bits, animations, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from easel.engine.folders import Folders, PathEscape
from easel.engine.nodes.pixels import Pixels, floats

MAX_FRAMES_PIXELS = 400_000_000
"""Most pixels in all frames of one file together: 4.8 GB as floats."""

_CLEAR = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    FileNotFoundError,
    PermissionError,
    MemoryError,
)
"""What says by itself what is wrong."""
_MASKLESS = (64, 64)
"""The shape of the mask ComfyUI gives a picture without alpha."""


class BrokenPicture(OSError):
    """A picture file that ends early, is damaged, or is too large to be unpacked."""


def load(path: Path) -> tuple[Pixels, Pixels]:
    """Return a file's frames as IMAGE and their transparency as MASK (1 where transparent).

    Frames of another size than the first are left out. Without alpha the mask is 64x64 zeros.
    Raises PIL.UnidentifiedImageError for what is no picture, PIL.Image.DecompressionBombError and `BrokenPicture`.
    """
    images: list[Pixels] = []
    masks: list[Pixels | None] = []
    pixels = 0
    with _opened(path) as source:
        for raw in ImageSequence.Iterator(source):
            size = images[0].shape[1::-1] if images else None
            pixels += raw.width * raw.height
            if pixels > MAX_FRAMES_PIXELS:
                raise BrokenPicture(
                    f"{path.name!r} has more than {MAX_FRAMES_PIXELS} pixels in its frames"
                )
            frame = ImageOps.exif_transpose(raw)
            if size is not None and frame.size != size:
                continue
            images.append(floats(np.asarray(_in_rgb(frame))))
            masks.append(_transparency(frame))
            if source.format == "MPO":  # further pictures of a camera's file are no animation
                break
    return np.stack(images), _stacked(masks, images[0].shape[:2])


def load_channel(path: Path, channel: str) -> Pixels:
    """Return one channel (``red``, ``green``, ``blue`` or ``alpha``) of a file's first frame as MASK; alpha is inverted.

    Raises as `load` does.
    """
    with _opened(path) as source:
        frame = ImageOps.exif_transpose(source)
        if frame.getbands() != ("R", "G", "B", "A"):
            frame = _eight_bits(frame).convert("RGBA")
        samples = floats(np.asarray(frame.getchannel(channel[0].upper())))
    return (1 - samples if channel == "alpha" else samples)[None]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a file; what goes wrong with it until the block ends is a `BrokenPicture`, unless its error says enough."""
    try:
        with warnings.catch_warnings():
            # Between Pillow's warning and its limit (89 and 179 megapixels) a picture is merely large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = Image.open(path)
        with source:
            yield source
    except (BrokenPicture, *_CLEAR):
        raise
    except Exception as error:  # decoders raise what they like at damaged data
        raise BrokenPicture(f"{path.name!r} is damaged or truncated: {error}") from error


def _eight_bits(frame: Image.Image) -> Image.Image:
    """Bring 32-bit integer samples, in which 16-bit greys arrive, to 8 bits, as ComfyUI does."""
    return frame.point(lambda sample: sample * (1 / 255)) if frame.mode == "I" else frame


def _in_rgb(frame: Image.Image) -> Image.Image:
    return _eight_bits(frame).convert("RGB")


def _transparency(frame: Image.Image) -> Pixels | None:
    if "A" in frame.getbands():
        alpha = frame.getchannel("A")
    elif frame.mode == "P" and "transparency" in frame.info:
        alpha = frame.convert("RGBA").getchannel("A")
    else:
        return None
    return 1 - floats(np.asarray(alpha))


def _stacked(masks: list[Pixels | None], shape: tuple[int, ...]) -> Pixels:
    known = [mask for mask in masks if mask is not None]
    if not known:
        return np.zeros((len(masks), *_MASKLESS), np.float32)
    return np.stack([np.zeros(shape, np.float32) if mask is None else mask for mask in masks])


def valid_name(folders: Folders, name: object, default: str = "input") -> bool | str:
    """Tell whether an annotated name (``"x.png [output]"``) is a file inside its folder; else the refusal in ComfyUI's words."""
    try:
        found = isinstance(name, str) and folders.annotated(name, default).is_file()
    except PathEscape:
        found = False
    return True if found else f"Invalid image file: {name}"


class Digests:
    """SHA-256 of files, remembered by what a stat says of them.

    A file changed less than ``settled`` seconds ago is read anew: another change within the same tick of the file system's
    clock would not show.
    """

    def __init__(self, remembered: int = 1024, settled: float = 1.0) -> None:
        self._remembered = remembered
        self._settled = settled
        self._known: OrderedDict[Path, tuple[tuple[int, ...], str]] = OrderedDict()

    def of(self, path: Path) -> str:
        """Return the digest of a file's bytes.

        Raises OSError when it cannot be read.
        """
        stat = path.stat()
        mark = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev)
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        if time.time() - stat.st_ctime > self._settled:
            self._known[path] = (mark, digest)
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
        return digest


digests = Digests()
