"""Recorded scenarios: what was sent to the real ComfyUI, what came back, and in which order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

from tests.conftest import FIXTURES

SCENARIOS = FIXTURES / "scenarios"

PROGRESS = ("progress", "progress_state")
"""Messages whose number depends on how fast a node is."""


class Message(NamedTuple):
    """One message a client received."""

    t: float
    kind: str
    """The event's name, or ``binary``."""
    data: Any

    @property
    def milestone(self) -> bool:
        """Whether every run of the scenario has exactly this message (steps of a node may differ)."""
        return self.kind not in PROGRESS and self.kind != "binary"


class Exchange(NamedTuple):
    """One HTTP request and its answer, as recorded."""

    t: float
    number: int
    method: str
    path: str
    record: dict[str, Any]

    @property
    def status(self) -> int:
        """The status of the answer."""
        return int(self.record["status"])

    def __str__(self) -> str:
        return f"{self.method} {self.path} (request {self.number})"


@dataclass(frozen=True)
class Client:
    """A recorded socket."""

    name: str
    client_id: str | None
    path: str
    flags: dict[str, Any] | None
    messages: list[Message]
    closed: float

    @property
    def opened(self) -> float:
        """When it was opened: those of the first moments were there before the first request."""
        first = self.messages[0].t
        return first if first > 0.15 else -1.0


@dataclass(frozen=True)
class Recording:
    """A scenario."""

    name: str
    started: float
    exchanges: list[Exchange]
    clients: list[Client]
    extra: dict[str, Any] = field(default_factory=dict)

    def prompts(self) -> list[dict[str, Any]]:
        """The bodies of the prompts that were accepted."""
        return [
            e.record["request_json"] for e in self.exchanges if is_prompt(e) and e.status == 200
        ]

    def cut(self, number: int | None) -> Recording:
        """Return the recording without the events from a request on."""
        if number is None:
            return self
        end = self.exchanges[number].t
        clients = [
            replace(c, messages=c.messages[: _end_of_prompt(c.messages, end)]) for c in self.clients
        ]
        return replace(self, clients=clients)


def _end_of_prompt(messages: list[Message], t: float) -> int:
    """Count the messages of what was submitted before a time: an ended prompt's last word included."""
    count = sum(m.t < t for m in messages)
    for index in range(count, len(messages)):
        if messages[index].kind == "executing" and messages[index].data.get("node", "") is None:
            return index + 1
        if messages[index].kind == "execution_start":
            break
    return count


def is_prompt(exchange: Exchange) -> bool:
    """Tell whether an exchange submits a prompt."""
    return exchange.method == "POST" and exchange.path in ("/prompt", "/api/prompt")


def message_of(record: dict[str, Any]) -> Message:
    """Read a recorded or received message."""
    if record["type"] == "binary":
        return Message(record["t"], "binary", record["binary"])
    data = record["data"]
    rest = {k: v for k, v in data.items() if k not in ("type", "data")}
    return Message(record["t"], data["type"], {**(data.get("data") or {}), **rest})


@cache
def load(name: str) -> Recording:
    """Read one scenario."""
    raw = json.loads((SCENARIOS / f"{name}.json").read_text())
    exchanges = [
        Exchange(record["t"], index, record["method"], record["path"], record)
        for index, record in enumerate(raw["http"])
    ]
    clients = [
        Client(
            client,
            seen["client_id"],
            seen["ws_path"],
            seen["feature_flags_sent"],
            [message_of(m) for m in seen["messages"] if m["dir"] == "server->client"],
            seen["closed"]["t"],
        )
        for client, seen in raw["clients"].items()
    ]
    return Recording(
        raw["scenario"], raw["started_at_unix"], exchanges, clients, raw.get("extra") or {}
    )


@cache
def names() -> list[str]:
    """All recorded scenarios, by the time they were made."""
    found = [path.stem for path in SCENARIOS.glob("*.json")]
    return sorted(found, key=lambda name: load(name).started)


def before(name: str) -> dict[str, Any] | None:
    """The body of the prompt the real server had run last when this scenario began: what its cache held.

    None when the server was fresh (its prompt numbers begin with 0).
    """
    previous: dict[str, Any] | None = None
    for other in names():
        numbers = [
            e.record["response_json"]["number"]
            for e in load(other).exchanges
            if is_prompt(e) and e.status == 200
        ]
        if 0 in numbers[:1]:
            previous = None
        if other == name:
            return previous
        if load(other).prompts():
            previous = load(other).prompts()[-1]
    raise KeyError(name)
