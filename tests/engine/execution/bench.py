"""An engine without its server: the real `Engine`, a sink that remembers, and small nodes that tests steer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from easel.engine.engine import Engine, PromptRefused
from easel.engine.events import Preview
from easel.engine.folders import Folders
from easel.engine.node import Input, Interrupted, NodeResult, Output, Registry
from easel.engine.server.bodies import encode

TIMEOUT = 20.0


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


class Sink:
    """Remembers what the engine says, as it would go over the wire."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any, str | None]] = []
        self._news = threading.Condition()

    def _note(self, event: str, data: Any, client_id: str | None) -> None:
        with self._news:
            self.said.append((event, data, client_id))
            self._news.notify_all()

    def send(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        self._note(event, json.loads(encode(data)), client_id)

    def send_preview(self, preview: Preview, client_id: str | None) -> None:
        self._note("preview", preview.image_format, client_id)

    def send_text(self, node_id: str, text: str, client_id: str | None) -> None:
        self._note("text", [node_id, text], client_id)

    def queue_changed(self, remaining: int) -> None:
        self._note("status", remaining, None)

    def wait(self, reached: Callable[[], Any], what: str) -> None:
        """Wait until something is true of what was said."""
        with self._news:
            assert self._news.wait_for(reached, TIMEOUT), f"no {what}: {self.said[-5:]}"

    def of(self, prompt_id: str) -> list[tuple[str, Any]]:
        """The events of a prompt, without times and ids."""
        return [
            (event, {k: v for k, v in data.items() if k not in {"prompt_id", "timestamp"}})
            for event, data, _ in list(self.said)
            if isinstance(data, dict) and data.get("prompt_id") == prompt_id
        ]


class Gates:
    """Events by name, made when first asked for, from whichever thread."""

    def __init__(self) -> None:
        self._events: dict[object, threading.Event] = {}

    def __getitem__(self, name: object) -> threading.Event:
        return self._events.setdefault(name, threading.Event())

    def open_all(self) -> None:
        """Let everything go."""
        for event in list(self._events.values()):
            event.set()


@dataclass
class Steering:
    """What tests hold in their hands while nodes run."""

    began: Gates = field(default_factory=Gates)
    go: Gates = field(default_factory=Gates)
    runs: list[str] = field(default_factory=list)
    """Names of nodes that ran, in order."""
    changed: Any = 0
    """What ``is_changed`` of `Watching` answers; an exception is raised."""
    made: list[Any] = field(default_factory=list)
    """Weak references to what `Heavy` made."""


class Bench:
    """A started engine and everything around it."""

    def __init__(self, folders: Folders, **options: Any) -> None:
        self.sink = Sink()
        self.steering = Steering()
        self.registry = registry(self.steering)
        self.engine = Engine(self.registry, folders, self.sink, **options)
        self.engine.start()

    def submit(self, prompt: Any, **body: Any) -> str:
        """Submit a prompt and return its id."""
        answer = self.engine.submit({"prompt": prompt, "client_id": "me", **body})
        return str(answer["prompt_id"])

    def ended(self, prompt_id: str) -> dict[str, Any]:
        """Wait for a prompt's last event and return its history entry."""
        last = ("executing", {"node": None, "prompt_id": prompt_id}, "me")
        self.sink.wait(lambda: last in self.sink.said, f"end of {prompt_id}")
        found: dict[str, Any] = self.engine.history(prompt_id)[prompt_id]
        return found

    def run(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """Run a prompt to its end and return its history entry."""
        return self.ended(self.submit(prompt, **body))

    def began(self, name: object) -> None:
        """Wait until a node has begun that waits to be let go."""
        assert self.steering.began[name].wait(TIMEOUT), f"{name} did not begin"

    def events(self, prompt: Any, **body: Any) -> list[str]:
        """Run a prompt and return its events in short: ``executing 1``, ``executed 1`` …"""
        prompt_id = self.submit(prompt, **body)
        self.ended(prompt_id)
        return [short(event, data) for event, data in self.sink.of(prompt_id)]

    def refused(self, refusal: PromptRefused) -> None:
        """Check that a refusal has ComfyUI's shape and left nothing behind."""
        assert set(refusal.error) == {"type", "message", "details", "extra_info"}
        assert self.engine.remaining == 0

    def still_works(self) -> None:
        """Run a prompt that succeeds."""
        entry = self.run({"1": node("Show", value=1)})
        assert entry["status"]["status_str"] == "success"


def short(event: str, data: Mapping[str, Any]) -> str:
    """An event in a few words."""
    if event == "progress_state":
        marks = {"running": "", "finished": "!"}
        return " ".join(["state", *(n + marks[s["state"]] for n, s in data["nodes"].items())])
    if event == "execution_cached":
        return " ".join(["cached", *data["nodes"]])
    words = [event.removeprefix("execution_")]
    if data.get("node") or data.get("node_id"):
        words.append(data.get("node") or data["node_id"])
    return " ".join(words)


def error_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The ``execution_error`` of a history entry."""
    kind, data = entry["status"]["messages"][-1]
    assert kind == "execution_error", entry
    assert entry["status"] | {"messages": ()} == {
        "status_str": "error",
        "completed": False,
        "messages": (),
    }
    found: dict[str, Any] = data
    return found


class Weighty:
    """A value that can be watched by a weak reference."""


class Unprintable(Exception):
    """An exception whose text fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


RAISED: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("wrong"),
    "exit": lambda: SystemExit(3),
    "keyboard": KeyboardInterrupt,
    "generator": GeneratorExit,
    "cancelled": asyncio.CancelledError,
    "memory": lambda: MemoryError("too big"),
    "surrogate": lambda: ValueError("a\ud800b"),
    "unprintable": Unprintable,
    "recursion": lambda: RecursionError("deep"),
    "group": lambda: BaseExceptionGroup("two", [ValueError("a"), SystemExit(1)]),
}


def raised(kind: str) -> BaseException:
    """Make one of them."""
    return RAISED[kind]()


RETURNED: dict[str, Any] = {
    "too few": (1,),
    "too many": (1, 2, 3),
    "none": None,
    "a text": "ab",
    "a number": 5,
    "an object": {"result": (1, 2)},
    "values that are a text": NodeResult("ab"),
    "shown is no object": NodeResult((1, [2]), ui=[1]),  # type: ignore[arg-type]
    "shown is no list": NodeResult((1, [2]), ui={"a": 5}),  # type: ignore[dict-item]
    "shown under a number": NodeResult((1, [2]), ui={5: [5]}),  # type: ignore[dict-item]
    "shown is no JSON": NodeResult((1, [2]), ui={"a": [{(1, 2): 3}]}),
    "a value for a list": (1, 2),
    "shown cannot be written": NodeResult((1, [2]), ui={"a": [Unprintable()]}),
}

INT = {"value": Input("INT")}


def registry(steering: Steering) -> Registry:  # noqa: PLR0915 - one declaration after the other
    """The nodes."""
    nodes = Registry()

    @nodes.node("Number", category="t", required=INT, outputs=[Output("INT")])
    def number(context: Any, value: int) -> tuple[int]:
        steering.runs.append(context.node_id)
        return (value,)

    @nodes.node(
        "Add",
        category="t",
        required={"a": Input("INT", {"default": 0, "min": 0, "max": 100})},
        optional={"b": Input("INT")},
        outputs=[Output("INT")],
    )
    def add(context: Any, a: int, b: int = 0) -> tuple[int]:
        steering.runs.append(context.node_id)
        return (a + b,)

    @nodes.node("Any", category="t", required={"value": Input("*")}, outputs=[Output("*")])
    def anything(_context: Any, value: Any) -> tuple[Any]:
        return (value,)

    @nodes.node("Many", category="t", required=INT, outputs=[Output("INT", is_list=True)])
    def many(_context: Any, value: int) -> tuple[list[int]]:
        return (list(range(value)),)

    @nodes.node(
        "Sum",
        category="t",
        required={"values": Input("INT")},
        outputs=[Output("INT")],
        input_is_list=True,
    )
    def total(context: Any, values: list[int]) -> tuple[int]:
        steering.runs.append(f"{context.node_id}:{values}")
        return (sum(values),)

    @nodes.node(
        "Show",
        category="t",
        required={"value": Input("*")},
        optional={"other": Input("*")},
        output_node=True,
    )
    def show(context: Any, value: Any, other: Any = None) -> NodeResult:
        steering.runs.append(context.node_id)
        return NodeResult(ui={"value": [value if other is None else [value, other]]})

    @nodes.node("Quiet", category="t", required={"value": Input("*")}, output_node=True)
    def quiet(context: Any, value: Any) -> tuple[()]:
        steering.runs.append(context.node_id)
        return ()

    @nodes.node(
        "Watching",
        category="t",
        required=INT,
        outputs=[Output("INT")],
        is_changed=lambda _folders, value: _changed(steering, value),
    )
    def watching(context: Any, value: int) -> tuple[int]:
        steering.runs.append(context.node_id)
        return (value,)

    @nodes.node(
        "Checked",
        category="t",
        required={"value": Input("INT", {"min": 0, "max": 3}), "free": Input("INT", {"max": 3})},
        outputs=[Output("INT")],
        output_node=True,
        validate=_validated,
    )
    def checked(_context: Any, value: int, free: int) -> tuple[int]:
        return (value + free,)

    @nodes.node("Gate", category="t", required={"name": Input("STRING")}, outputs=[Output("INT")])
    def gate(context: Any, name: str) -> tuple[int]:
        steering.began[name].set()
        assert steering.go[name].wait(TIMEOUT)
        return (1,)

    @nodes.node("Sleep", category="t", required={"name": Input("STRING")}, outputs=[Output("INT")])
    def sleep(context: Any, name: str) -> tuple[int]:
        steering.began[name].set()
        context.sleep(TIMEOUT)
        return (1,)

    @nodes.node("Stepping", category="t", required=INT, outputs=[Output("INT")])
    def stepping(context: Any, value: int) -> tuple[int]:
        for step in range(value):
            context.progress(step + 1, value)
        return (value,)

    @nodes.node("Async", category="t", required={"name": Input("STRING")}, outputs=[Output("INT")])
    async def waiting(_context: Any, name: str) -> tuple[int]:
        steering.began[name].set()
        while not steering.go[name].is_set():  # noqa: ASYNC110 - set from another thread
            await asyncio.sleep(0.005)
        return (1,)

    @nodes.node(
        "Stubborn", category="t", required={"name": Input("STRING")}, outputs=[Output("INT")]
    )
    async def stubborn(_context: Any, name: str) -> tuple[int]:
        steering.began[name].set()
        try:
            while not steering.go[name].is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.005)
        finally:
            steering.go[f"{name} is gone"].set()
        return (1,)

    @nodes.node(
        "Fail", category="t", required={"kind": Input(list(RAISED))}, outputs=[Output("INT")]
    )
    def fail(_context: Any, kind: str) -> tuple[int]:
        raise raised(kind)

    @nodes.node(
        "FailAsync", category="t", required={"kind": Input(list(RAISED))}, outputs=[Output("INT")]
    )
    async def fail_async(_context: Any, kind: str) -> tuple[int]:
        await asyncio.sleep(0)
        raise raised(kind)

    @nodes.node(
        "FailTask", category="t", required={"kind": Input(list(RAISED))}, outputs=[Output("INT")]
    )
    async def fail_task(_context: Any, kind: str) -> tuple[int]:
        async def child() -> None:
            raise raised(kind)

        await asyncio.ensure_future(child())
        return (1,)

    @nodes.node("Stop", category="t", required=INT, outputs=[Output("INT")])
    def stop(_context: Any, value: int) -> tuple[int]:
        raise Interrupted

    @nodes.node(
        "Odd",
        category="t",
        required={"what": Input(list(RETURNED))},
        outputs=[Output("INT"), Output("INT", is_list=True)],
    )
    def odd(_context: Any, what: str) -> Any:
        return RETURNED[what]

    @nodes.node(
        "Heavy",
        category="t",
        required=INT,
        outputs=[Output("*")],
        is_changed=lambda _folders, value: math.nan if value < 0 else value,
    )
    def heavy(_context: Any, value: int) -> tuple[Weighty]:
        made = Weighty()
        steering.made.append(weakref.ref(made))
        return (made,)

    @nodes.node("Use", category="t", required={"value": Input("*")}, outputs=[Output("INT")])
    def use(_context: Any, value: Any) -> tuple[int]:
        return (1,)

    @nodes.node("Alive", category="t", required=INT, outputs=[Output("INT")])
    def alive(_context: Any, value: int) -> tuple[int]:
        return (sum(made() is not None for made in steering.made),)

    return nodes


def _changed(steering: Steering, _value: int) -> Any:
    if isinstance(steering.changed, BaseException):
        raise steering.changed
    return steering.changed


def _validated(_folders: Folders, value: int) -> bool | str:
    if value == 13:
        raise RuntimeError("unlucky")
    if value == 14:
        raise SystemExit(4)
    if not isinstance(value, int):
        return f"{value!r} came as {type(value).__name__}"
    return True if value < 10 else "more than nine"
