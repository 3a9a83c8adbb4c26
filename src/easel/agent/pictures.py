"""Is a file what its input needs? Pictures are opened and read through, audio and video are known by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from PIL import Image, UnidentifiedImageError, features

from easel.errors import InputRejected
from easel.workflow.inputs import InputKind

Family: TypeAlias = Literal["image", "audio", "video", "3d", "file"]

HEAD_LENGTH = 512
"""First bytes that `sniff` looks at."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is, judged by its content alone."""

    family: Family
    extension: str
    """With its dot."""
    media_type: str


_FORMATS = {
    "PNG": Content(family="image", extension=".png", media_type="image/png"),
    "JPEG": Content(family="image", extension=".jpg", media_type="image/jpeg"),
    "WEBP": Content(family="image", extension=".webp", media_type="image/webp"),
    "GIF": Content(family="image", extension=".gif", media_type="image/gif"),
    "BMP": Content(family="image", extension=".bmp", media_type="image/bmp"),
    "TIFF": Content(family="image", extension=".tiff", media_type="image/tiff"),
    "AVIF": Content(family="image", extension=".avif", media_type="image/avif"),
}
_WAV = Content(family="audio", extension=".wav", media_type="audio/wav")
_MP3 = Content(family="audio", extension=".mp3", media_type="audio/mpeg")
_FLAC = Content(family="audio", extension=".flac", media_type="audio/flac")
_OGG = Content(family="audio", extension=".ogg", media_type="audio/ogg")
_OGV = Content(family="video", extension=".ogv", media_type="video/ogg")
_AAC = Content(family="audio", extension=".aac", media_type="audio/aac")
_M4A = Content(family="audio", extension=".m4a", media_type="audio/mp4")
_AIFF = Content(family="audio", extension=".aiff", media_type="audio/aiff")
_MP4 = Content(family="video", extension=".mp4", media_type="video/mp4")
_MOV = Content(family="video", extension=".mov", media_type="video/quicktime")
_WEBM = Content(family="video", extension=".webm", media_type="video/webm")
_MKV = Content(family="video", extension=".mkv", media_type="video/x-matroska")
_AVI = Content(family="video", extension=".avi", media_type="video/x-msvideo")
_GLB = Content(family="3d", extension=".glb", media_type="model/gltf-binary")
_FBX = Content(family="3d", extension=".fbx", media_type="application/octet-stream")
_PLY = Content(family="3d", extension=".ply", media_type="application/octet-stream")
_BINARY = Content(family="file", extension=".bin", media_type="application/octet-stream")

_PASSED_ON_EXTENSIONS = {
    ".gltf",
    ".obj",
    ".stl",
    ".latent",
    ".safetensors",
    ".txt",
    ".json",
    ".srt",
}
"""Extensions taken from a URL for content that has no mark of its own; none that anything executes."""

_WANTED: dict[InputKind, tuple[set[Family], str]] = {
    "image": ({"image"}, "a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF or AVIF)"),
    "mask": ({"image"}, "a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF or AVIF)"),
    "audio": (
        {"audio", "video"},
        "audio (WAV, MP3, FLAC, OGG, AAC, M4A, AIFF) or video with sound",
    ),
    "video": ({"video", "image"}, "video (MP4, WEBM, MKV, MOV, AVI, OGV) or an animated picture"),
}

_ANIMATED = {"GIF", "WEBP", "AVIF"}
_MOST_FRAME_READS = 100
"""Frames of an animation read through; more only cost time."""


def sniff(head: bytes) -> Content | None:
    """Tell what a file is by its first `HEAD_LENGTH` bytes, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _FORMATS["PNG"]
    if head.startswith(b"\xff\xd8\xff"):
        return _FORMATS["JPEG"]
    if head[:6] in {b"GIF87a", b"GIF89a"}:
        return _FORMATS["GIF"]
    if head[:4] in {b"II*\0", b"MM\0*"}:
        return _FORMATS["TIFF"]
    if head[:4] == b"RIFF":
        return {b"WEBP": _FORMATS["WEBP"], b"WAVE": _WAV, b"AVI ": _AVI}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _WEBM if b"webm" in head[:64] else _MKV
    if head.startswith(b"OggS"):
        return _OGV if b"\x80theora" in head[:128] else _OGG
    if head.startswith(b"fLaC"):
        return _FLAC
    if head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}:
        return _AIFF
    if head[:2] in {b"\xff\xf1", b"\xff\xf9"}:
        return _AAC
    if head.startswith(b"ID3") or (len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return _MP3
    if head[:4] == b"glTF":
        return _GLB
    if head.startswith(b"Kaydara FBX Binary"):
        return _FBX
    if head.startswith((b"ply\n", b"ply\r")):
        return _PLY
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return _FORMATS["BMP"]
    return None


def inspect(path: Path, kind: InputKind, max_pixels: int, name_hint: str = "") -> Content:
    """Check that the file fits the input and return what it is. Blocking, CPU-bound: call it in a thread.

    ``name_hint`` is a file name from the caller, used only for the extension of content without a mark of its own.
    Raises `InputRejected`.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_LENGTH)
    content = sniff(head)
    if kind != "file":
        families, wanted = _WANTED[kind]
        if content is None or content.family not in families:
            found = f"it is {content.media_type}" if content else _guess(head)
            raise InputRejected(f"the file is not {wanted}: {found}", hint=f"send {wanted}")
    if content is None:
        suffix = Path(name_hint).suffix.lower()
        if suffix in _PASSED_ON_EXTENSIONS:
            return msgspec.structs.replace(_BINARY, extension=suffix)
        return _BINARY
    if content.family == "image":
        _check_picture(path, content, max_pixels)
    return content


def _iso_media(head: bytes) -> Content:
    brand = head[8:12]
    if brand in {b"avif", b"avis"}:
        return _FORMATS["AVIF"]
    if brand in {b"M4A ", b"M4B ", b"M4P "}:
        return _M4A
    return _MOV if brand == b"qt  " else _MP4


def _check_picture(path: Path, content: Content, max_pixels: int) -> None:
    """Open a picture and read it through. Only formats that Pillow reads by itself are tried, never an outside program."""
    name = next(name for name, known in _FORMATS.items() if known is content)
    if name == "AVIF" and not features.check("avif"):
        raise InputRejected("AVIF pictures cannot be read here", hint="send PNG, JPEG or WEBP")
    try:
        with Image.open(path, formats=["JPEG", "MPO"] if name == "JPEG" else [name]) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise _too_many_pixels(f"{width} x {height}", max_pixels)
            _read_through(picture, name, max_pixels)
    except InputRejected:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("far", max_pixels) from None
    except UnidentifiedImageError:
        raise InputRejected(f"the {name} picture is damaged: its header cannot be read") from None
    except MemoryError:
        raise _too_many_pixels("too", max_pixels) from None
    except Exception as error:  # noqa: BLE001  Pillow's readers raise nearly anything for hostile bytes
        problem = str(error) or type(error).__name__
        raise InputRejected(
            f"the {name} picture is damaged or cut off: {problem[:200]}",
            hint="send the whole file",
        ) from None


def _read_through(picture: Image.Image, name: str, max_pixels: int) -> None:
    if name == "PNG":
        picture.verify()  # the checksum of every chunk to the end, without unpacking a pixel
        return
    if name == "JPEG":
        picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
    picture.load()
    if name not in _ANIMATED:
        return
    affordable = max_pixels // (picture.width * picture.height)
    for frame in range(1, min(getattr(picture, "n_frames", 1), _MOST_FRAME_READS, affordable)):
        picture.seek(frame)
        picture.load()


def _too_many_pixels(size: str, max_pixels: int) -> InputRejected:
    return InputRejected(
        f"the picture has {size} pixels, more than {max_pixels} in all are not accepted",
        hint="scale it down; the limit is the setting agent.inputs.max_pixels",
    )


def allow_pixels(max_pixels: int) -> None:
    """Raise Pillow's own limit of this process to ``max_pixels`` where it is lower."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def _guess(head: bytes) -> str:
    start = head.lstrip()[:64].lower()
    if not head:
        return "it is empty"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page"
    if start.startswith((b"{", b"[")):
        return "it looks like JSON"
    if start.startswith((b"<?xml", b"<svg")):
        return "it is XML or SVG"
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed (gzip)"
    return "its content is of no known kind"
