"""File names, counters and whole files."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.engine.nodes import saving
from easel.engine.nodes.saving import resolve, save


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, prefix: str, data: bytes = b"x", number: int = 0) -> str:
    target = resolve(prefix, folder)
    return save(target, ".bin", lambda sink: sink.write(data), number)


def test_counts_up_from_one(tmp_path: Path) -> None:
    names = [write(tmp_path, "a") for _ in range(3)]
    assert names == ["a_00001_.bin", "a_00002_.bin", "a_00003_.bin"]
    assert names_in(tmp_path) == names


def test_continues_after_the_highest_of_the_same_name(tmp_path: Path) -> None:
    for name in ("a_00041_.png", "a_b_00099_.png", "ab_00077_.png", "a_x_.png", "a_00050.png"):
        (tmp_path / name).touch()
    assert write(tmp_path, "a") == "a_00042_.bin"


def test_starts_again_when_the_files_are_gone(tmp_path: Path) -> None:
    (tmp_path / write(tmp_path, "a")).unlink()
    assert write(tmp_path, "a") == "a_00001_.bin"


def test_files_of_others_are_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "a_00002_.bin").write_text("of another process")
    assert write(tmp_path, "a") == "a_00003_.bin"
    assert (tmp_path / "a_00002_.bin").read_text() == "of another process"


def test_a_remembered_counter_does_not_list_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a")

    def listed(_target: saving.Target) -> int:
        raise AssertionError("listed the folder")

    monkeypatch.setattr(saving, "highest", listed)
    assert write(tmp_path, "a") == "a_00002_.bin"


def test_writers_at_the_same_time_get_names_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(write, tmp_path, "a", str(n).encode()) for n in range(100)]
        names = {future.result(): str(n).encode() for n, future in enumerate(futures)}
    assert len(names) == 100
    assert names_in(tmp_path) == sorted(names)
    assert all((tmp_path / name).read_bytes() == data for name, data in names.items())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def broken(sink: Any) -> None:
        sink.write(b"half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        save(resolve("a", tmp_path), ".bin", broken)
    assert names_in(tmp_path) == []


def test_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Path, _target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert [write(tmp_path, "a") for _ in range(2)] == ["a_00001_.bin", "a_00002_.bin"]
    assert names_in(tmp_path) == ["a_00001_.bin", "a_00002_.bin"]


def test_placeholders_and_subfolders(tmp_path: Path) -> None:
    target = resolve("%year%/in %width%x%height%/n", tmp_path, 640, 480)
    year = time.localtime().tm_year
    assert target.subfolder == f"{year}/in 640x480"
    assert save(target, ".bin", lambda sink: sink.write(b"")) == "n_00001_.bin"
    assert (tmp_path / str(year) / "in 640x480" / "n_00001_.bin").exists()


def test_batch_number_in_the_name(tmp_path: Path) -> None:
    names = [write(tmp_path, "b%batch_num%", number=number) for number in (0, 1, 0)]
    assert names == ["b0_00001_.bin", "b1_00002_.bin", "b0_00003_.bin"]


@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "/etc/x", "a/b/../../../x", "link/x"])
def test_prefixes_that_leave_the_folder_are_refused(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "output"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Exception, match="Saving image outside the output folder is not allowed"):
        write(root, prefix)
    assert sorted(tmp_path.rglob("*")) == before


@given(prefix=st.text(alphabet="ab./%_\\ -é", max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_prefix_files_stay_inside(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "inside" / "output"
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Exception):
        write(root, prefix)
    outside = [path for path in tmp_path.rglob("*") if root not in (path, *path.parents)]
    assert outside == [tmp_path / "inside"]
