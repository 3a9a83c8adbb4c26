"""Demo nodes that take time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from easel.engine.folders import Folders
from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry
from easel.engine.nodes.declare import flag, integer, real
from easel.engine.nodes.demo.common import CATEGORY, MODULE, PASSED, SALT, SECONDS, swatch
from easel.engine.nodes.pixels import Pixels, picture

registry = Registry()


@registry.node(
    "EaselSteps",
    display_name="Steps",
    category=CATEGORY,
    python_module=MODULE,
    description="Counts steps, reporting each with a preview. Interrupts take effect at once.",
    required={
        "steps": integer(10, 1, 100_000),
        "seconds": real(0.1, 0.0, 3600.0, 0.001),
        "preview": flag(True),
        "salt": SALT,
    },
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def steps(
    context: NodeContext,
    *,
    steps: int,
    seconds: float,
    preview: bool,
    salt: int,
    image: Pixels | None = None,
) -> tuple[Pixels]:
    """Take ``steps`` steps of ``seconds`` each."""
    out = swatch(salt) if image is None else image
    shown = picture(out[0]) if preview else None
    for step in range(1, steps + 1):
        context.sleep(seconds)
        context.progress(step, steps, shown)
    return (out,)


@registry.node(
    "EaselSleep",
    display_name="Sleep",
    category=CATEGORY,
    python_module=MODULE,
    description="Waits without a word. Interrupts take effect at once.",
    required={"seconds": SECONDS, "salt": SALT},
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def sleep(
    context: NodeContext, seconds: float, salt: int, image: Pixels | None = None
) -> tuple[Pixels]:
    """Wait, reporting nothing, as a loader does."""
    context.sleep(seconds)
    return (swatch(salt) if image is None else image,)


@registry.node(
    "EaselDeaf",
    display_name="Deaf",
    category=CATEGORY,
    python_module=MODULE,
    description="Waits and does not look for interrupts: one takes effect before the next node.",
    required={"seconds": SECONDS, "salt": SALT},
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def deaf(
    _context: NodeContext, seconds: float, salt: int, image: Pixels | None = None
) -> tuple[Pixels]:
    """Wait without looking for interrupts."""
    time.sleep(seconds)
    return (swatch(salt) if image is None else image,)


def models(folders: Folders) -> Sequence[str]:
    """List all files below ``models``, as ``kind/name``."""
    root = folders.models
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


_loaded: set[str] = set()


@registry.node(
    "EaselModel",
    display_name="Load a Pretended Model",
    category=CATEGORY,
    python_module=MODULE,
    description="Takes the time that loading a model of this size would take; the same model again takes none.",
    required={
        "model_name": Input(models, {}),
        "gigabytes": real(2.0, 0.0, 1000.0, 0.01),
        "seconds_per_gigabyte": real(0.5, 0.0, 600.0, 0.01),
    },
    outputs=(Output("MODEL"), Output("STRING", "name")),
    output_node=True,
)
def model(
    context: NodeContext, model_name: str, gigabytes: float, seconds_per_gigabyte: float
) -> NodeResult:
    """Pretend to load a model; a process remembers which ones it has loaded."""
    if model_name in _loaded:
        text = f"{model_name} was loaded already"
    else:
        seconds = gigabytes * seconds_per_gigabyte
        context.sleep(seconds)
        _loaded.add(model_name)
        text = f"{model_name} loaded in {seconds:g} s"
    return NodeResult((model_name, model_name), ui={"text": [text]})


@registry.node(
    "EaselNoop",
    display_name="Nothing",
    category=CATEGORY,
    python_module=MODULE,
    description="Gives a text as its result and does nothing else: what remains is what a prompt costs.",
    required={"text": Input("STRING", {"default": ""})},
    output_node=True,
)
def noop(_context: NodeContext, text: str) -> NodeResult:
    """Do nothing."""
    return NodeResult(ui={"text": [text]})
