"""Text-to-image without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from easel.engine.node import Interrupted, Registry
from easel.engine.nodes import pretend
from easel.engine.nodes import registry as base
from easel.engine.object_info import class_info
from tests.conftest import FIXTURES
from tests.engine.nodes.local import Context, call, context, run_graph

PROMPT: dict[str, Any] = json.loads((FIXTURES / "scenarios" / "b_sd_txt2img.json").read_text())[
    "http"
][0]["request_json"]["prompt"]


@pytest.fixture
def registry() -> Registry:
    both = Registry()
    both.include(base)
    both.include(pretend.registry)
    return both


def run(registry: Registry, ctx: Context, **changed: dict[str, Any]) -> Any:
    prompt: dict[str, Any] = {
        node_id: {**node, "inputs": {**node["inputs"], **changed.get(f"n{node_id}", {})}}
        for node_id, node in PROMPT.items()
    }
    shown = run_graph(registry, prompt, ctx, ["9"])
    return np.array(Image.open(ctx.folders.output / shown["9"]["images"][0]["filename"]))


def test_a_recorded_workflow_runs(registry: Registry, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    picture = run(registry, ctx)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 5
    # As KSampler reported them: from 1 to the number of steps, each with a preview.
    assert ctx.steps == [(step, 4, True) for step in (1, 2, 3, 4)]


def test_seed_and_prompt_determine_the_picture(registry: Registry, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    first = run(registry, ctx)
    np.testing.assert_array_equal(run(registry, ctx), first)
    for changed in (
        {"n3": {"seed": 12}}, {"n6": {"text": "a dog"}}, {"n7": {"text": "good"}}, {"n3": {"cfg": 3.0}},
        {"n3": {"seed": 2**64 - 1}}, {"n4": {"ckpt_name": "other"}},
    ):  # fmt: skip
        assert (run(registry, ctx, **changed) != first).any()


def test_images_of_a_batch_differ(registry: Registry, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    run(registry, ctx, n5={"width": 96, "height": 32, "batch_size": 2})
    one, two = (np.array(Image.open(file)) for file in sorted(ctx.folders.output.iterdir()))
    assert one.shape == two.shape == (32, 96, 3)
    assert (one != two).any()


def test_interrupted_between_steps(registry: Registry, tmp_path: Path) -> None:
    ctx = context(tmp_path, interrupt_after=2)
    with pytest.raises(Interrupted):
        run(registry, ctx)
    assert len(ctx.steps) == 2


def test_latents_of_another_kind_fail_as_recorded(registry: Registry, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    (latent,) = call(registry, "EmptySD3LatentImage", ctx, width=64, height=64).values
    model = pretend.PretendedModel("x")
    recorded = "expected input[1, 16, 8, 8] to have 4 channels, but got 16 channels instead"
    with pytest.raises(RuntimeError) as raised:
        call(registry, "VAEDecode", ctx, samples=latent, vae=model)
    assert recorded in str(raised.value)


def test_pretending_is_said(tmp_path: Path) -> None:
    folders = context(tmp_path).folders
    for name in ("CheckpointLoaderSimple", "CLIPTextEncode", "KSampler", "VAEDecode"):
        node_class = pretend.registry.get(name)
        assert node_class is not None
        assert "Pretended" in class_info(node_class, folders)["description"]


def test_checkpoints_are_listed_with_their_folders(tmp_path: Path) -> None:
    folders = context(tmp_path).folders
    assert pretend.checkpoints(folders) == []
    for name in ("b.safetensors", "sub/a.ckpt", "notes.txt", "sub/c.SFT"):
        file = folders.models / "checkpoints" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert pretend.checkpoints(folders) == ["b.safetensors", "sub/a.ckpt", "sub/c.SFT"]
