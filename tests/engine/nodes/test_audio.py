"""Sound goes in as WAV and comes out as FLAC."""

from __future__ import annotations

import hashlib
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from easel.engine.nodes import flac, registry
from tests.engine.nodes.local import call, context


def crc(data: bytes, polynomial: int, bits: int) -> int:
    """The checksum bit by bit."""
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) & 1 else 0)
            value &= 2**bits - 1
    return value


def decode(
    data: bytes,
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int16]], int, dict[str, str]]:
    """Read what `flac.encode` writes, checking every checksum."""
    assert data[:4] == b"fLaC"
    at, tags, info = 4, {}, b""
    while True:
        (word,) = struct.unpack(">I", data[at : at + 4])
        block = data[at + 4 : at + 4 + (word & 0xFFFFFF)]
        at += 4 + len(block)
        if word >> 24 & 0x7F == 0:
            info = block
        else:
            (vendor,) = struct.unpack("<I", block[:4])
            (count,) = struct.unpack("<I", block[4 + vendor : 8 + vendor])
            place = 8 + vendor
            for _ in range(count):
                (length,) = struct.unpack("<I", block[place : place + 4])
                key, _, value = block[place + 4 : place + 4 + length].decode().partition("=")
                tags[key] = value
                place += 4 + length
        if word >> 31:
            break
    (packed,) = struct.unpack(">Q", info[10:18])
    rate, channels, total = packed >> 44, (packed >> 41 & 7) + 1, packed & (2**36 - 1)
    assert (packed >> 36 & 31) + 1 == 16
    parts = []
    number = 0
    while at < len(data):
        start = at
        assert data[at : at + 3] == b"\xff\xf8\x70"
        assert data[at + 3] == (channels - 1) << 4 | 8
        coded = chr(number).encode()
        assert data[at + 4 : at + 4 + len(coded)] == coded
        at += 4 + len(coded)
        (size,) = struct.unpack(">H", data[at : at + 2])
        size += 1
        assert data[at + 2] == crc(data[start : at + 2], 0x07, 8)
        at += 3
        subframes = []
        for _ in range(channels):
            assert data[at] == 0x02
            subframes.append(np.frombuffer(data[at + 1 : at + 1 + 2 * size], ">i2"))
            at += 1 + 2 * size
        (check,) = struct.unpack(">H", data[at : at + 2])
        assert check == crc(data[start:at], 0x8005, 16)
        at += 2
        parts.append(np.stack(subframes))
        number += 1
    samples = (
        np.concatenate(parts, axis=1).astype(np.int16)
        if parts
        else np.zeros((channels, 0), np.int16)
    )
    assert samples.shape[1] == total
    assert hashlib.md5(samples.T.astype("<i2").tobytes()).digest() == info[18:]
    return samples, rate, tags


@pytest.mark.parametrize(
    ("channels", "count"), [(1, 0), (1, 5), (2, 4096), (2, 9000), (1, 4096 * 130 + 17)]
)
def test_flac(channels: int, count: int) -> None:
    samples = np.random.default_rng(3).integers(-(2**15), 2**15, (channels, count), dtype=np.int16)
    if count > 100_000:
        samples[:] = 1  # more than 127 frames: their numbers take two bytes
        data = flac.encode(samples, 8000, {})
        assert len(data) == 4 + 38 + 4 + 4 + 5 + 4 + sum(
            4 + (1 if n < 128 else 2) + 3 + 1 + 2 * size + 2
            for n, size in enumerate([4096] * 130 + [17])
        )
        return
    found, rate, tags = decode(flac.encode(samples, 44100, {"prompt": '{"é": 1}'}))
    assert (rate, tags) == (44100, {"prompt": '{"é": 1}'})
    np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_to_flac(tmp_path: Path, width: int) -> None:
    ctx = context(tmp_path, prompt={"1": {"class_type": "SaveAudio", "inputs": {}}})
    wide = np.array([[0, 2**30, -(2**31)], [-(2**30), 2**24, 0]], np.int64)
    upper = wide >> (32 - 8 * width)
    stored = (upper + 128 if width == 1 else upper).T.reshape(-1)
    with wave.open(str(ctx.folders.input / "a.wav"), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(width)
        out.setframerate(8000)
        out.writeframes(
            b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in stored)
        )
    (audio,) = call(registry, "LoadAudio", ctx, audio="a.wav").values
    assert audio["sample_rate"] == 8000
    assert audio["waveform"].shape == (1, 2, 3)
    np.testing.assert_allclose(audio["waveform"][0], wide / 2**31, atol=1e-7)
    for class_type, folder in (("SaveAudio", "output"), ("PreviewAudio", "temp")):
        result = call(registry, class_type, ctx, audio=audio)
        assert result.ui is not None
        (entry,) = result.ui["audio"]
        assert entry["type"] == folder
        file = ctx.folders.of_type(folder) / entry["subfolder"] / entry["filename"]
        samples, rate, tags = decode(file.read_bytes())
        assert rate == 8000
        assert "prompt" in tags
        np.testing.assert_array_equal(samples, wide >> 16)


def test_silence(tmp_path: Path) -> None:
    (audio,) = call(registry, "EmptyAudio", context(tmp_path), duration=0.5, channels=1).values
    assert audio["waveform"].shape == (1, 1, 22050)
    assert not audio["waveform"].any()


def test_other_sound_files_are_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    node_class = registry.get("LoadAudio")
    assert node_class is not None
    assert node_class.validate is not None
    for name in ("missing.wav", "../x.wav", 5):
        assert node_class.validate(ctx.folders, audio=name) == f"Invalid audio file: {name}"
    (ctx.folders.input / "a.wav").write_bytes(b"RIFF and nothing else")
    assert node_class.validate(ctx.folders, audio="a.wav") is True
    with pytest.raises(ValueError, match=r"'a\.wav' is not a WAV file"):
        call(registry, "LoadAudio", ctx, audio="a.wav")
