"""Runs nodes and small graphs without the engine around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from easel.engine.folders import Folders
from easel.engine.node import Interrupted, NodeResult, Registry
from easel.workflow.types import Prompt, is_link


@dataclass
class Context:
    """A node's context that writes down what the node reports."""

    folders: Folders
    prompt: Prompt = field(default_factory=dict)
    extra_pnginfo: Mapping[str, Any] | None = None
    node_id: str = "1"
    prompt_id: str = "prompt"
    interrupt_after: int | None = None
    """Reports after which the prompt counts as interrupted."""
    steps: list[tuple[float, float, bool]] = field(default_factory=list)
    """Value, maximum, and whether there was a preview."""
    texts: list[str] = field(default_factory=list)
    images: list[tuple[Image.Image, float, float]] = field(default_factory=list)
    events: list[tuple[str, Mapping[str, Any], str | None]] = field(default_factory=list)
    slept: float = 0

    def progress(self, value: float, maximum: float, preview: Image.Image | None = None) -> None:
        self.steps.append((value, maximum, preview is not None))
        self.check_interrupt()

    def check_interrupt(self) -> None:
        if self.interrupt_after is not None and len(self.steps) >= self.interrupt_after:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def send_text(self, text: str) -> None:
        self.texts.append(text)

    def send_image(self, image: Image.Image, value: float, maximum: float) -> None:
        self.images.append((image, value, maximum))

    def send_event(self, event: str, data: Mapping[str, Any], client_id: str | None = None) -> None:
        self.events.append((event, data, client_id))


def context(root: Path, **fields: Any) -> Context:
    """A context on a data directory of its own."""
    folders = Folders(root)
    folders.prepare()
    return Context(folders, **fields)


def call(registry: Registry, class_type: str, context: Context, **inputs: Any) -> NodeResult:
    """Run one node; inputs left out take their defaults, or the first choice."""
    node_class = registry.get(class_type)
    assert node_class is not None, class_type
    for name, declared in node_class.required.items():
        if name in inputs:
            continue
        if declared.options and "default" in declared.options:
            inputs[name] = declared.options["default"]
        elif not isinstance(declared.type, str) and not callable(declared.type):
            inputs[name] = declared.type[0]
    if node_class.input_is_list:
        inputs = {
            name: value if isinstance(value, list) else [value] for name, value in inputs.items()
        }
    result = node_class.run(context, **inputs)
    if isinstance(result, NodeResult):
        return result
    assert isinstance(result, tuple)
    return NodeResult(result)


def run_graph(
    registry: Registry, prompt: Prompt, context: Context, targets: Iterable[str]
) -> dict[str, Mapping[str, Any]]:
    """Run a prompt's output nodes and return what each shows."""
    done: dict[str, NodeResult] = {}

    def result(node_id: str) -> NodeResult:
        if node_id not in done:
            node = prompt[node_id]
            inputs = {
                name: result(value[0]).values[value[1]] if is_link(value) else value
                for name, value in node["inputs"].items()
            }
            context.node_id, context.prompt = node_id, prompt
            done[node_id] = call(registry, node["class_type"], context, **inputs)
        return done[node_id]

    return {target: result(target).ui or {} for target in targets}
