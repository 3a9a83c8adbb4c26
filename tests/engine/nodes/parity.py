"""Compares the built-in nodes with a real ComfyUI, and records what the real one gives.

``python -m tests.engine.nodes.parity URL INPUT_FOLDER [--record]``: the folder is the input folder of the ComfyUI at the URL;
the graphs' pictures are written into it. Prints the largest difference of each case that has one; with ``--record`` writes
the small cases' results to ``golden.json``, which the default test suite compares with.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from easel.engine.nodes import registry
from tests.engine.nodes.graphs import Case, cases, png_bytes, write_inputs
from tests.engine.nodes.local import Context, run_graph
from tests.waiting import until

GOLDEN = Path(__file__).with_name("golden.json")

Samples = np.ndarray[Any, np.dtype[np.uint8]]
Result = list[Any]
"""An output's texts, or its pictures as they were saved."""


def ours(case: Case, context: Context) -> list[Result]:
    """Run a case on the built-in nodes."""
    prompt, targets = case.prompt()
    shown = run_graph(registry, prompt, context, targets)
    results: list[Result] = []
    for target in targets:
        if "text" in shown[target]:
            results.append(list(shown[target]["text"]))
            continue
        images = shown[target]["images"]
        files = [
            context.folders.output / entry["subfolder"] / entry["filename"] for entry in images
        ]
        results.append([np.array(Image.open(file)) for file in files])
    return results


async def theirs(case: Case, session: aiohttp.ClientSession, url: str) -> list[Result]:
    """Run a case on the ComfyUI at the URL.

    Raises AssertionError with its words when it refuses or fails.
    """
    prompt, targets = case.prompt()
    async with session.post(f"{url}/prompt", json={"prompt": prompt}) as response:
        body = await response.json()
        assert response.status == 200, body
    prompt_id = body["prompt_id"]

    async def finished() -> dict[str, Any] | None:
        async with session.get(f"{url}/history/{prompt_id}") as response:
            entry: dict[str, Any] | None = (await response.json()).get(prompt_id)
            return entry

    entry = await until(finished, pause=0.005)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    results: list[Result] = []
    for target in targets:
        shown = entry["outputs"][target]
        if "text" in shown:
            results.append(shown["text"])
            continue
        pictures = []
        for image in shown["images"]:
            async with session.get(f"{url}/view", params=image) as response:
                pictures.append(np.array(Image.open(io.BytesIO(await response.read()))))
        results.append(pictures)
    return results


@dataclass(frozen=True)
class Difference:
    """How two results differ: the largest difference of a sample, and the share of samples that differ at all."""

    largest: int
    share: float


def compare(ours: list[Result], theirs: list[Result]) -> Difference:
    """Compare results of one case.

    Raises AssertionError where shapes or texts differ.
    """
    largest, differing, count = 0, 0, 0
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other), f"{len(one)} results, {len(other)} expected"
        for mine, real in zip(one, other, strict=True):
            if isinstance(mine, str) or isinstance(real, str):
                assert mine == real
                continue
            assert mine.shape == real.shape, f"shape {mine.shape}, {real.shape} expected"
            distance = np.abs(mine.astype(int) - real.astype(int))
            largest = max(largest, int(distance.max(initial=0)))
            differing += int((distance > 0).sum())
            count += distance.size
    return Difference(largest, differing / max(count, 1))


def pack(results: list[Result]) -> list[list[Any]]:
    """Return results as JSON: texts as they are, pictures as PNGs in base64."""
    return [
        [
            part if isinstance(part, str) else {"png": base64.b64encode(png_bytes(part)).decode()}
            for part in result
        ]
        for result in results
    ]


def unpack(stored: list[list[Any]]) -> list[Result]:
    """Return what `pack` stored."""
    return [
        [
            part
            if isinstance(part, str)
            else np.array(Image.open(io.BytesIO(base64.b64decode(part["png"]))))
            for part in result
        ]
        for result in stored
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("input_folder", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    write_inputs(options.input_folder)
    golden: dict[str, Any] = {}
    count = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        from easel.engine.folders import Folders

        folders = Folders(Path(folder))
        folders.prepare()
        write_inputs(folders.input)
        async with aiohttp.ClientSession() as session:
            for case in cases():
                if options.only not in case.name:
                    continue
                count += 1
                try:
                    real = await theirs(case, session, options.url)
                    if not case.large:
                        golden[case.name] = pack(real)
                    difference = compare(ours(case, Context(folders)), real)
                except Exception as error:  # noqa: BLE001 - a table of everything that differs
                    failed += 1
                    print(f"{case.name:45} {type(error).__name__}: {str(error)[:300]}")  # noqa: T201
                    continue
                if difference.largest:
                    print(f"{case.name:45} {difference.largest:4} {difference.share:8.2%}")  # noqa: T201
    print(f"{count} cases, {failed} failed")  # noqa: T201
    if options.record:
        GOLDEN.write_text(json.dumps(golden, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
