"""Workflow files that cannot be run: said before anything is started or sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from easel.cli import main
from tests.cli.command import easel

NODE = {"class_type": "SaveImage", "inputs": {}}


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", "not_json", "is empty"),
        (b" \n ", "not_json", "is empty"),
        (b"{", "not_json", "is not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00", "not_json", "is not JSON"),
        (b"[1, 2]", "not_json", "not a JSON object"),
        (b"{}", "invalid_prompt", "no nodes"),
        (b'{"1": {"inputs": {}}}', "invalid_prompt", "class_type"),
        (b'{"nodes": [], "links": []}', "ui_format_workflow", "API format"),
        (b'{"1": {"class_type": "A", "inputs": {"x": [1, 2, 3]}}}', "invalid_prompt", "link"),
        (b"[" * 100_000, "not_json", ""),
    ],
)
def test_a_bad_file(
    content: bytes, code: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(content)
    arguments = ["run", str(path), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {path}")
    assert says in err
    assert "\nhint: " in err or code == "invalid_prompt" or says == ""
    assert not (tmp_path / "out").exists()

    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == code
    assert json.loads(out)["state"] == "not started"


def test_a_ui_workflow_is_told_how_to_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.json"
    path.write_text('{"last_node_id": 1, "nodes": [{"id": 1}], "links": []}')
    assert main(["run", str(path)]) == 2
    assert "Export (API)" in capsys.readouterr().err


def test_missing_and_odd_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "portrait.json").write_text("{}")
    for name, says in (
        (str(tmp_path / "portrate.json"), f"did you mean {tmp_path / 'portrait.json'}?"),
        (str(tmp_path / "no" / "such.json"), f"there is no folder {tmp_path / 'no'}"),
        (str(tmp_path), "is a folder, not a workflow file"),
        ("x" * 5000, "cannot be read"),
    ):
        assert main(["run", name]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert says in err


def test_an_output_folder_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"1": NODE}))
    assert main(["run", str(path), "-o", str(path)]) == 2
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "://", "http://[", "http://127.0.0.1:port"])
def test_an_odd_url(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"1": NODE}))
    assert main(["run", str(path), "-o", str(tmp_path / "out"), "--url", url]) == 2
    assert "is not an agent's URL" in capsys.readouterr().err


async def test_standard_input(tmp_path: Path) -> None:
    result = await easel("run", "-", "-o", str(tmp_path), stdin=b"{")
    assert result.code == 2
    assert result.err.startswith("error: standard input: the file is not JSON")
