"""Logs of instances: their last lines, and how they are kept short."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from easel.fleet.runtimes import log_files
from easel.fleet.runtimes.log_files import LONGEST_LINE, last_lines, shorten

NUL_FREE = st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), max_size=30)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@settings(max_examples=60)
@given(st.lists(NUL_FREE, max_size=30), st.integers(-1, 40), st.integers(1, 40))
def test_the_last_lines(
    tmp_path_factory: object, lines: list[str], wanted: int, block: int
) -> None:
    folder: Path = tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    path = written(folder, "".join(f"{line}\n" for line in lines))
    before, log_files.BLOCK = log_files.BLOCK, block
    try:
        expected = lines[-wanted:] if wanted > 0 else []
        assert last_lines(path, wanted) == expected
    finally:
        log_files.BLOCK = before


def test_odd_files(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "nothing", 5) == []
    assert last_lines(written(tmp_path, b""), 5) == []
    assert last_lines(written(tmp_path, b"\n"), 5) == [""]
    assert last_lines(written(tmp_path, b"no end"), 5) == ["no end"]
    assert last_lines(written(tmp_path, b"\xff\xfe\n"), 1) == ["��"]
    bar = b"loading\n 10%\r 50%\r100%\r\nready\r\n"
    assert last_lines(written(tmp_path, bar), 5) == ["loading", "100%", "ready"]
    (long,) = last_lines(written(tmp_path, b"x" * (LONGEST_LINE + 1)), 1)
    assert len(long) == LONGEST_LINE + 2
    path = written(tmp_path, b"before\nafter\n")
    assert last_lines(path, 5, begin=7) == ["after"]


def test_a_long_log_keeps_its_newer_part_and_its_writer(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"line {number}\n" for number in range(1000)))
    shorten(path, most=path.stat().st_size, kept=100)
    assert len(last_lines(path, 5000)) == 1000, "it is not too long yet"
    with path.open("ab") as writer:
        shorten(path, most=1000, kept=100)
        writer.write(b"goes on\n")
    lines = last_lines(path, 5000)
    assert lines[-2:] == ["line 999", "goes on"]
    assert len(lines) < 15
    assert all(line.startswith("line ") for line in lines[:-1]), "no line is cut"
    shorten(tmp_path / "nothing")
