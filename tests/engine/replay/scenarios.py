"""What each scenario needs before it begins, the bodies the recording describes only in words, and what differs on purpose."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from PIL import Image

from tests.engine.replay.player import Body

CHECKPOINTS = (
    "random-sd15-full.safetensors",
    "random-sd15-tiny-kl.safetensors",
    "random-sd15-tiny.safetensors",
)


class Deviation(NamedTuple):
    """A request that this engine answers otherwise, with what it answers; docs/engine-deviations.md says why."""

    status: int
    error: str | None = None
    """The error's ``type``, where the answer is a typed error."""


@dataclass(frozen=True)
class Setup:
    """How to prepare a scenario and how to compare it."""

    settings: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], None] = lambda _: None
    """Fills the data directory before the engine starts."""
    bodies: dict[int, Body] = field(default_factory=dict)
    before_request: Callable[[Path], dict[int, Callable[[], Any]]] = lambda _: {}
    deviations: dict[int, Deviation] = field(default_factory=dict)
    skip: frozenset[int] = frozenset()
    """Requests of which this engine has no counterpart."""
    events_end_at: int | None = None
    """From this request on the prompts differ on purpose, and so do the events."""
    steps_vary: bool = False
    """Progress is left out of the comparison: an interrupt, or a prompt beside it, meets a node at another step."""
    ignored: frozenset[str] = frozenset()
    """Keys whose values are left out: words of another library."""
    status_apart: bool = False
    """``status`` is compared by itself: prompts are submitted while others run."""
    branches: bool = False
    """Independent nodes run at the same time: compared node by node, the nodes named by when they began."""


def save(picture: Image.Image) -> bytes:
    """Encode a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def png(colour: str, size: int = 48) -> bytes:
    """Make a small picture."""
    return save(Image.new("RGB", (size, size), colour))


def upload(content: bytes, filename: str | None, name: str = "image", **fields: str) -> Body:
    """Make a multipart upload."""

    def make(_: dict[str, str]) -> dict[str, Any]:
        form = aiohttp.FormData(quote_fields=False)
        for key, field_value in fields.items():
            form.add_field(key, field_value)
        if filename is not None:
            form.add_field(name, content, filename=filename, content_type="image/png")
        else:
            form.add_field("other", "x", content_type="text/plain")
        return {"data": form}

    return make


def zeros(size: int) -> Body:
    """Send a long body."""
    return lambda _: {"data": io.BytesIO(bytes(size))}


def checkpoints(base: Path) -> None:
    """Lay the checkpoints of the recording's machine down as empty files."""
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True)
    for name in CHECKPOINTS:
        (folder / name).write_bytes(b"")


def mask() -> bytes:
    """A picture with an alpha channel."""
    return save(Image.new("RGBA", (48, 48), (0, 0, 0, 128)))


def inputs(base: Path) -> None:
    """The files that lay in the input and output folders when ``i`` was recorded."""
    (base / "input").mkdir(parents=True)
    (base / "output").mkdir(parents=True)
    (base / "input" / "broken.png").write_bytes(b"this is not a picture at all")
    (base / "input" / "example.png").write_bytes(png("white"))
    (base / "output" / "b_sd_00001_.png").write_bytes(png("blue"))


UPLOADS: dict[int, Body] = dict(
    enumerate(
        [
            upload(png("red"), "pic.png"),
            upload(png("red"), "pic.png"),
            upload(png("green"), "pic.png"),
            upload(png("green"), "pic.png", overwrite="true"),
            upload(png("blue"), "pic.png", subfolder="alice"),
            upload(png("red"), "t.png", type="temp"),
            upload(png("red"), "o.png", type="output"),
            upload(png("red"), "n.png", type="nonsense"),
            upload(png("red"), "x.png", subfolder="../../x"),
            upload(png("red"), "../x.png"),
            upload(b"hello", "notes.txt"),
            upload(png("red"), "a b+c#é.png"),
            upload(png("red"), "a%20b.png"),
            upload(png("red"), "sub/dir.png"),
            upload(png("red"), "/tmp/absolute.png"),
            upload(png("red"), 'q"uote.png'),
            upload(b"", None),
            zeros(101 * 1024 * 1024),
            upload(png("red"), "api.png"),
            upload(
                mask(),
                "mask.png",
                original_ref='{"filename":"pic.png","type":"input"}',
                subfolder="clipspace",
            ),
        ]
    )
)


def probe_pack(base: Path) -> None:
    """The front end's part of the test pack, and what else ``n`` found at start."""
    pack = base / "custom_nodes" / "probe_nodes"
    for folder in ("example_workflows", "locales/en", "web"):
        (pack / folder).mkdir(parents=True)
    (pack / "example_workflows" / "demo.json").write_text('{"x": 1}')
    (pack / "locales" / "en" / "main.json").write_text('{"hello": "world"}')
    (pack / "web" / "probe.js").write_text('console.log("probe")\n')


def after_n(base: Path) -> None:
    """The state ``n`` and ``q2`` left behind, in which ``r_endpoints`` was recorded."""
    probe_pack(base)
    folder = base / "models" / "checkpoints"
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("new.safetensors", "part.safetensors", "sub/deep/y.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "dangling.safetensors").symlink_to("/nowhere/at/all.safetensors")
    (base / "output").mkdir()
    (base / "output" / "n_00001_.png").write_bytes(png("red"))
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text('{"Comfy.A": 1}')


def safetensors(metadata: dict[str, str]) -> bytes:
    """Make a safetensors file without tensors."""
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


def model_changes(base: Path) -> dict[int, Callable[[], Any]]:
    """What was done to the model folders between the requests of ``n``."""
    folder = base / "models" / "checkpoints"
    metadata = {
        "kind": "tiny",
        "format": "pt",
        "made_by": "make_checkpoint.py",
        "note": "random weights, for tests only",
        "seed": "1234",
    }

    def deep(name: str) -> Callable[[], Any]:
        def make() -> None:
            (folder / "sub" / "deep").mkdir(parents=True, exist_ok=True)
            (folder / "sub" / "deep" / name).write_bytes(b"")

        return make

    return {
        2: lambda: (folder / "new.safetensors").write_bytes(safetensors(metadata)),
        3: deep("x.safetensors"),
        4: deep("y.safetensors"),
        5: (folder / "sub" / "deep" / "x.safetensors").unlink,
        6: lambda: (folder / "part.safetensors.tmp").write_bytes(b""),
        7: lambda: (folder / "part.safetensors.tmp").rename(folder / "part.safetensors"),
        8: lambda: (folder / "dangling.safetensors").symlink_to("/nowhere/x.safetensors"),
    }


def n_start(base: Path) -> None:
    """What ``n`` had at start; its second model folder is played by the first."""
    probe_pack(base)
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "linked-tiny.safetensors").write_bytes(b"")
    (base / "models" / "loras").mkdir()
    (base / "models" / "loras" / "l.safetensors").write_bytes(b"")


def users_workflow(headers: dict[str, str]) -> dict[str, Any]:
    """The workflow of ``q``: it names its user."""
    return {"data": json.dumps({"of": headers["comfy-user"]}).encode()}


EARLIER_PROMPTS = frozenset({15, 16})
"""The history lists of ``g5``, which hold prompts of the scenarios before it."""

SETUPS: dict[str, Setup] = {
    "b_sd_txt2img": Setup(prepare=checkpoints),
    "c_cached": Setup(prepare=checkpoints),
    "c2_cached_other_client": Setup(prepare=checkpoints),
    "c3_partly_cached": Setup(prepare=checkpoints),
    "d_validation": Setup(
        prepare=checkpoints,
        deviations={11: Deviation(400, "not_json"), 13: Deviation(400)},
    ),
    "e_execution_error": Setup(bodies={0: upload(b"this is not a picture at all", "broken.png")}),
    "e3_out_of_memory_like": Setup(ignored=frozenset({"exception_message", "exception_type"})),
    "f_interrupt": Setup(prepare=checkpoints, steps_vary=True),
    "f2_interrupt_targeted": Setup(prepare=checkpoints, steps_vary=True, status_apart=True),
    "g_two_clients": Setup(prepare=checkpoints, steps_vary=True, status_apart=True),
    "g2_no_client_id": Setup(prepare=checkpoints, steps_vary=True),
    "g3_unknown_client_id": Setup(prepare=checkpoints),
    "g5_cross_client_control": Setup(
        prepare=checkpoints,
        steps_vary=True,
        status_apart=True,
        deviations={17: Deviation(400, "bad_request")},
        skip=EARLIER_PROMPTS,
    ),
    "g7_interrupt_without_client_id": Setup(steps_vary=True),
    "i_upload_load_image": Setup(
        prepare=inputs,
        bodies=UPLOADS,
        deviations={
            7: Deviation(400, "bad_request"),
            13: Deviation(400, "bad_request"),
            14: Deviation(400),
            17: Deviation(413, "body_too_large"),
            25: Deviation(400, "prompt_outputs_failed_validation"),
            26: Deviation(400, "prompt_outputs_failed_validation"),
        },
        events_end_at=25,
    ),
    "l_free": Setup(prepare=checkpoints),
    "m_preview_latent2rgb": Setup(prepare=checkpoints, settings={"previews": True}),
    "m2_preview_with_metadata": Setup(prepare=checkpoints, settings={"previews": True}),
    "m3_preview_without_client_id": Setup(prepare=checkpoints, settings={"previews": True}),
    "n_base_directory_models_refresh": Setup(
        prepare=n_start,
        before_request=model_changes,
        deviations={16: Deviation(400, "bad_request")},
        # a second model folder (10, 12-14), models that are really read (19, 20), a pack's own route (23, 24)
        skip=frozenset({10, 12, 13, 14, 19, 20, 23, 24}),
        events_end_at=19,
    ),
    "o2_async_nodes_and_list_order": Setup(branches=True),
    "q_multi_user": Setup(
        settings={"multi_user": True},
        bodies=dict.fromkeys((13, 20, 27), users_workflow),
        deviations={
            2: Deviation(401, "unknown_user"),
            7: Deviation(400, "bad_request"),
            **dict.fromkeys((27, 28, 29), Deviation(401, "unknown_user")),
        },
    ),
    "r_endpoints": Setup(prepare=after_n, deviations={50: Deviation(400, "not_json")}),
}
