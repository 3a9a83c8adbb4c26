"""What a node is to the built-in engine: a declaration, a function, and the context it runs in.

A pack is a module-level `Registry`; ``easel engine --pack package.module:registry`` adds one. The declaration produces
the class's ``/object_info`` entry in ComfyUI's own form, so the front end and the validation read the same thing.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from PIL import Image

from easel.engine.folders import Folders
from easel.workflow.types import NodeId, Prompt

Combo: TypeAlias = Sequence[str] | Callable[[Folders], Sequence[str]]
"""The choices of a combo input: fixed, or listed anew at every request (file and model names)."""


class Interrupted(Exception):
    """Raised inside a node when its prompt was interrupted. Nodes let it pass."""


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input.

    ``type`` is a ComfyUI type name (``"INT"``, ``"IMAGE"``, ``"*"`` …) or the choices of a combo.
    ``options`` are those of ``/object_info``: ``default``, ``min``, ``max``, ``step``, ``multiline``, ``image_upload`` …
    """

    type: str | Combo
    options: Mapping[str, Any] | None = None
    """None leaves the second element out of the ``/object_info`` entry, as ComfyUI's own declarations do."""


@dataclass(frozen=True, slots=True)
class Output:
    """One declared output: its type, the name shown, and whether it is a list of values."""

    type: str
    name: str | None = None
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What a node returns: one value an output, and what the front end shows (``executed`` and ``/history``)."""

    values: Sequence[Any] = ()
    ui: Mapping[str, Sequence[Any]] | None = None


class NodeContext(Protocol):
    """What a running node may ask of the engine. Every call is safe from the worker thread."""

    prompt_id: str
    node_id: NodeId
    prompt: Prompt
    """The prompt being executed (hidden input ``PROMPT``)."""
    extra_pnginfo: Mapping[str, Any] | None
    """Hidden input ``EXTRA_PNGINFO``: what the front end wants written into PNGs."""
    folders: Folders

    def progress(self, value: float, maximum: float, preview: Image.Image | None = None) -> None:
        """Report a step (``progress``, ``progress_state``, a binary preview) and look for an interrupt.

        Raises `Interrupted`.
        """

    def check_interrupt(self) -> None:
        """Raise `Interrupted` if this prompt was interrupted."""

    def sleep(self, seconds: float) -> None:
        """Wait, ending at once with `Interrupted` when the prompt is interrupted."""

    def send_text(self, text: str) -> None:
        """Send a progress text (binary frame 3) to the prompt's client."""

    def send_image(self, image: Image.Image, value: float, maximum: float) -> None:
        """Report a step as `progress` does, with a full-size PNG as its preview even where previews are switched off.

        This is how SaveImageWebsocket hands out pictures: ``progress_state``, then ``progress`` and the frame in the order
        ComfyUI has for the client (type 4 before ``progress``, type 1 after it).
        """

    def send_event(self, event: str, data: Mapping[str, Any], client_id: str | None = None) -> None:
        """Send a custom event to one client, or to every socket when ``client_id`` is None."""


Run: TypeAlias = Callable[
    ..., "NodeResult | tuple[Any, ...] | Awaitable[NodeResult | tuple[Any, ...]]"
]
"""``run(context, **inputs)``; may be a coroutine function. With ``input_is_list`` every input is a list."""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """A node class under ComfyUI's name, with its ``/object_info`` entry and its function."""

    name: str
    run: Run
    display_name: str | None
    category: str
    required: Mapping[str, Input] = field(default_factory=dict)
    optional: Mapping[str, Input] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Name → ComfyUI's hidden type. Listed only; the values are read from the context."""
    outputs: Sequence[Output] = ()
    output_node: bool = False
    input_is_list: bool = False
    description: str = ""
    python_module: str = "nodes"
    style: Literal["v1", "v3"] = "v1"
    """ComfyUI declares nodes in two ways whose ``/object_info`` entries differ: in v3, combos are
    ``["COMBO", {"options": [...]}]``, every input has options, and ``deprecated``, ``experimental`` and ``api_node`` are listed."""
    experimental: bool = False
    deprecated: bool = False
    is_changed: Callable[..., Any] | None = None
    """``is_changed(folders, **constant_inputs)``: a value that enters the cache key; NaN means "always run again"."""
    validate: Callable[..., bool | str] | None = None
    """``validate(folders, **constant_inputs)``: True, or why the value is refused. Only the inputs it names are passed,
    and for those the engine's own range and combo checks are skipped, as ComfyUI's VALIDATE_INPUTS does."""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the ``/object_info`` entry."""

    @property
    def lists_files(self) -> bool:
        """Whether the choices of an input are listed anew at every request."""
        declared = (*self.required.values(), *self.optional.values())
        return any(callable(one.type) for one in declared)

    @property
    def is_async(self) -> bool:
        """Whether its function is a coroutine function."""
        return inspect.iscoroutinefunction(self.run)

    def declares(self, name: str) -> bool:
        """Tell whether there is an input of this name."""
        return name in self.required or name in self.optional


class Registry:
    """Node classes by name. Later registration of a known name is an error: built-in names cannot be overridden."""

    def __init__(self) -> None:
        self._classes: dict[str, NodeClass] = {}

    def add(self, node_class: NodeClass) -> None:
        """Add a class.

        Raises ValueError when the name is taken.
        """
        if node_class.name in self._classes:
            raise ValueError(f"node class {node_class.name!r} is already registered")
        self._classes[node_class.name] = node_class

    def node(
        self, name: str, *, category: str, display_name: str | None = None, **fields: Any
    ) -> Callable[[Run], Run]:
        """Declare the decorated function as node class ``name``; ``fields`` are those of `NodeClass`."""

        def register(run: Run) -> Run:
            self.add(NodeClass(name, run, display_name, category, **fields))
            return run

        return register

    def include(self, other: Registry) -> None:
        """Add every class of another registry."""
        for node_class in other:
            self.add(node_class)

    def get(self, name: str) -> NodeClass | None:
        """Return the class, or None when the name is unknown."""
        return self._classes.get(name)

    def __iter__(self) -> Iterator[NodeClass]:
        return iter(self._classes.values())

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __len__(self) -> int:
        return len(self._classes)
