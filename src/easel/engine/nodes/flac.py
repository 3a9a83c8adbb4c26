"""A FLAC writer: 16-bit samples, stored as they are (RFC 9639), for players and browsers that expect ComfyUI's ``.flac``."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096
_VERBATIM = 0x02
_STREAMINFO, _COMMENTS = 0, 4
_LAST = 0x80
_CRC8, _CRC16 = 0x07, 0x8005


def encode(samples: NDArray[np.int16], sample_rate: int, comments: Mapping[str, str]) -> bytes:
    """Return a FLAC file of ``[channels, samples]``, with ``comments`` as its tags.

    Raises ValueError for more than 8 channels and for sample rates beyond 655350 Hz.
    """
    channels, count = samples.shape
    if not 1 <= channels <= 8 or not 1 <= sample_rate <= 655_350:
        raise ValueError(f"FLAC holds no {channels} channels of {sample_rate} Hz")
    size = min(_BLOCK, max(16, count))
    interleaved = np.ascontiguousarray(samples.T, "<i2").tobytes()
    packed = sample_rate << 44 | (channels - 1) << 41 | (16 - 1) << 36 | count
    info = struct.pack(">HH6xQ", size, size, packed) + hashlib.md5(interleaved).digest()  # noqa: S324
    out = [b"fLaC", _metadata(_STREAMINFO, info), _metadata(_COMMENTS | _LAST, _tags(comments))]
    whole = count // size
    blocks = samples[:, : whole * size].reshape(channels, whole, size).swapaxes(0, 1)
    out.append(_frames(blocks, 0))
    if count % size:
        out.append(_frames(samples[None, :, whole * size :], whole))
    return b"".join(out)


def _metadata(kind: int, data: bytes) -> bytes:
    return struct.pack(">I", kind << 24 | len(data)) + data


def _tags(comments: Mapping[str, str]) -> bytes:
    texts = [b"easel", *(f"{key}={value}".encode() for key, value in comments.items())]
    vendor, *rest = (struct.pack("<I", len(text)) + text for text in texts)
    return vendor + struct.pack("<I", len(rest)) + b"".join(rest)


def _frames(blocks: NDArray[np.int16], first: int) -> bytes:
    """Return frames of ``[frames, channels, samples]``, all of one length, numbered from ``first``."""
    count, channels, size = blocks.shape
    if not count:
        return b""
    body = np.empty((count, channels, 1 + 2 * size), np.uint8)
    body[:, :, 0] = _VERBATIM
    body[:, :, 1:] = np.ascontiguousarray(blocks, ">i2").view(np.uint8)
    bodies = body.reshape(count, -1)
    heads = [_head(first + number, channels, size) for number in range(count)]
    out: list[bytes] = []
    for length in sorted({len(head) for head in heads}):  # of one length they are checked together
        alike = [number for number, head in enumerate(heads) if len(head) == length]
        head = np.frombuffer(b"".join(heads[number] for number in alike), np.uint8)
        frames = np.concatenate((head.reshape(-1, length), bodies[alike]), axis=1)
        sums = _crc(frames, _CRC16, 16).astype(">u2").view(np.uint8).reshape(-1, 2)
        out.append(np.concatenate((frames, sums), axis=1).tobytes())
    return b"".join(out)


def _head(number: int, channels: int, size: int) -> bytes:
    # Sync and fixed block size; size at the end of the head and rate as in STREAMINFO; channels and 16 bits.
    coded = chr(number).encode("utf-8", "surrogatepass") if number < 0x110000 else _long(number)
    head = b"\xff\xf8\x70" + bytes([(channels - 1) << 4 | 0x08]) + coded
    head += struct.pack(">H", size - 1)
    check = _crc(np.frombuffer(head, np.uint8)[None], _CRC8, 8)
    return head + bytes([int(check[0])])


def _long(number: int) -> bytes:
    """Go on where UTF-8 as Python knows it ends: the original scheme's four bytes hold 21 bits."""
    if number >= 2**21:
        raise ValueError("too long for one FLAC file")
    tail = [0x80 | number >> shift & 0x3F for shift in (12, 6, 0)]
    return bytes([0xF0 | number >> 18, *tail])


def _table(polynomial: int, bits: int) -> NDArray[np.uint16]:
    values = np.arange(256, dtype=np.uint32) << (bits - 8)
    for _ in range(8):
        carry = values >> (bits - 1) & 1
        values = (values << 1 & (2**bits - 1)) ^ carry * polynomial
    return values.astype(np.uint16)


def _crc(rows: NDArray[np.uint8], polynomial: int, bits: int) -> NDArray[np.uint16]:
    """Return the checksum of each row, all rows side by side."""
    table = _table(polynomial, bits)
    mask = np.uint16(2**bits - 1)
    sums = np.zeros(len(rows), np.uint16)
    for column in np.ascontiguousarray(rows.T):
        index = (sums >> np.uint16(bits - 8)) ^ column
        sums = ((sums << np.uint16(8)) & mask) ^ table[index] if bits > 8 else table[index]
    return sums
