"""Properties of names, inline content and pictures, over anything."""

from __future__ import annotations

import base64
import os.path
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from easel.agent.inline_files import read_base64, read_data_uri
from easel.agent.input_names import check_name
from easel.agent.pictures import HEAD_LENGTH, inspect, sniff
from easel.errors import InputRejected
from tests.agent.web import picture

NO_FIXTURE_CHECK = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def comfyui_path(name: str) -> str:
    """Where ComfyUI looks for an annotated name."""
    for mark in ("[output]", "[input]", "[temp]"):
        if name.endswith(mark):
            return os.path.join("/base/folder", name[: -len(mark) - 1])  # noqa: PTH118
    return os.path.join("/base/folder", name)  # noqa: PTH118


@given(
    st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "/",
                "a",
                " ",
                "\\",
                "[output]",
                "[input]",
                "[temp]",
                "C:",
                "~",
                "é",
                "x.png",
            ]
        ),
        max_size=8,
    ).map("".join)
)
@example("a/..x[output]")
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name)
    except InputRejected:
        return
    path = os.path.normpath(comfyui_path(name))
    assert path == "/base/folder" or path.startswith("/base/folder/")


@given(st.binary(min_size=1, max_size=400), st.data())
def test_base64_in_every_form(content: bytes, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))(content)
    plain = text.decode()
    if data.draw(st.booleans()):
        plain = plain.rstrip("=")
    cut = data.draw(st.integers(0, len(plain)))
    plain = plain[:cut] + data.draw(st.sampled_from(["", " ", "\r\n", "\t"])) + plain[cut:]
    assert b"".join(read_base64(plain, len(content))) == content
    assert b"".join(read_data_uri(f"data:a/b;x=y;base64,{plain}", len(content))) == content
    with pytest.raises(InputRejected):
        b"".join(read_base64(plain, len(content) - 1))


@given(st.binary(min_size=1, max_size=200).filter(bytes.strip))
def test_percent_encoded_content(content: bytes) -> None:
    value = "data:text/plain;charset=utf-8," + quote_from_bytes(content, safe="")
    assert b"".join(read_data_uri(value, 1000)) == content


def test_long_base64_is_read_in_pieces() -> None:
    content = bytes(range(256)) * 20_000
    text = base64.encodebytes(content).decode()
    pieces = list(read_base64(text, len(content)))
    assert len(pieces) > 3
    assert b"".join(pieces) == content


@given(st.text(max_size=80))
def test_any_text_is_content_or_refused(text: str) -> None:
    for read in (read_base64, read_data_uri):
        try:
            content = b"".join(read(text, 50))
        except InputRejected:
            continue
        assert 0 < len(content) <= 50


@given(st.binary(max_size=64))
def test_sniffing_never_raises(head: bytes) -> None:
    found = sniff(head)
    assert found is None or found.extension.startswith(".")


@pytest.mark.parametrize("picture_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_pictures_are_read_or_refused(tmp_path: Path, picture_format: str) -> None:
    whole = picture((24, 18), picture_format)
    path = tmp_path / "x"

    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=6), st.booleans())
    @settings(parent=NO_FIXTURE_CHECK, max_examples=60)
    def damaged(place: int, other: bytes, cut: bool) -> None:
        content = whole[:place] + other + (b"" if cut else whole[place + len(other) :])
        path.write_bytes(content)
        for kind in ("image", "file"):
            try:
                found = inspect(path, kind, 10_000)
            except InputRejected:
                continue
            assert found == (sniff(content[:HEAD_LENGTH]) or found)

    damaged()
