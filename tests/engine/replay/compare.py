"""Compares what was played with what was recorded, request by request and socket by socket."""

from __future__ import annotations

import json
from typing import Any

from tests.engine.replay import normalise
from tests.engine.replay.player import Answer, Played
from tests.engine.replay.recording import PROGRESS, Exchange, Message, Recording
from tests.engine.replay.scenarios import Deviation, Setup

SAME_HEADERS = ("Allow", "Content-Range", "Cache-Control", "Pragma", "Expires", "Accept-Ranges")
PRESENT_HEADERS = ("Etag", "Last-Modified", "Content-Disposition")
STATIC = ("/", "/index.html", "/scripts/", "/docs/")
LISTINGS = ("/userdata?", "/extensions", "/internal/files/")


def answers(recording: Recording, setup: Setup, played: Played) -> list[str]:
    """Say which answers differ, and how."""
    played_exchanges = [e for e in recording.exchanges if e.number not in setup.skip]
    numbers = Numbers()
    problems: list[str] = []
    for exchange, answer in zip(played_exchanges, played.answers, strict=True):
        deviation = setup.deviations.get(exchange.number)
        if deviation is not None:
            problems += deviates(exchange, answer, deviation)
            continue
        for what, theirs, ours in differences(exchange, answer, played.names, numbers, setup):
            problems.append(f"{exchange}: {what}\n  recorded: {theirs}\n  engine:   {ours}")
    return problems


def deviates(exchange: Exchange, answer: Answer, deviation: Deviation) -> list[str]:
    """Check an answer that differs on purpose."""
    found = (answer.status, None)
    if deviation.error is not None and answer.body.startswith(b"{"):
        found = (answer.status, answer.json["error"]["type"])
    if found == (deviation.status, deviation.error):
        return []
    return [f"{exchange}: expected {deviation}, got {found}: {answer.body[:200]!r}"]


class Numbers:
    """Prompt numbers count from the server's start: compared from the first one on."""

    def __init__(self) -> None:
        self.theirs: float | None = None
        self.ours: float | None = None

    def learn(self, theirs: float, ours: float) -> None:
        """Note the first pair."""
        if self.theirs is None:
            self.theirs, self.ours = theirs, ours

    def shifted(self, number: Any) -> Any:
        """Return this engine's number as the recording would have it; numbers a client chose stay."""
        if self.theirs is None or self.ours is None or not isinstance(number, int):
            return number
        if abs(number) >= 1000 or isinstance(number, bool):
            return number
        shift = self.theirs - self.ours
        return number - shift if number < 0 else number + shift

    def in_items(self, found: Any) -> Any:
        """Shift the numbers in a queue or history answer."""
        if isinstance(found, dict):
            return {key: self.in_items(child) for key, child in found.items()}
        if isinstance(found, list):
            if len(found) == 5 and isinstance(found[1], str) and isinstance(found[2], dict):
                return [self.shifted(found[0]), *found[1:]]
            return [self.in_items(child) for child in found]
        return found


def differences(
    exchange: Exchange, answer: Answer, names: dict[str, str], numbers: Numbers, setup: Setup
) -> list[tuple[str, Any, Any]]:
    """List what differs between a recorded and a played answer: (what, recorded, played)."""
    record = exchange.record
    found: list[tuple[str, Any, Any]] = []
    if answer.status != exchange.status:
        return [("status", exchange.status, f"{answer.status} {answer.body[:300]!r}")]
    headers = {k.lower(): v for k, v in record["response_headers"].items()}
    ours = {k.lower(): v for k, v in answer.headers.items()}
    for side in (headers, ours):  # the picture is another one
        if "content-range" in side:
            side["content-range"] = side["content-range"].rpartition("/")[0]
    found += [
        (name, headers.get(name.lower()), ours.get(name.lower()))
        for name in ("Content-Type", *SAME_HEADERS)
        if headers.get(name.lower()) != ours.get(name.lower())
    ]
    found += [
        (name, headers.get(name.lower()), ours.get(name.lower()))
        for name in PRESENT_HEADERS
        if (name.lower() in headers) != (name.lower() in ours)
    ]
    if "response_json" in record:
        theirs, mine = body_pair(exchange, answer, names, numbers)
        theirs, mine = (
            normalise.without(theirs, setup.ignored),
            normalise.without(mine, setup.ignored),
        )
        if theirs != mine:
            found.append(("body", *shortest(theirs, mine)))
    elif "response_text" in record:
        if record["response_text"] != answer.body.decode():
            found.append(("text", record["response_text"], answer.body.decode()[:300]))
    elif "response_bytes" in record:
        theirs = record["response_bytes"]
        if (theirs["len"] == 0) != (answer.body == b""):
            found.append(("length", theirs["len"], len(answer.body)))
        if exchange.path.startswith(STATIC[1:]) or exchange.path == "/":
            if theirs["len"] != len(answer.body):
                found.append(("length", theirs["len"], len(answer.body)))
        elif theirs["head_hex"][:16] != answer.body[:8].hex() and "preview" not in exchange.path:
            found.append(("first bytes", theirs["head_hex"][:16], answer.body[:8].hex()))
    return found


def body_pair(
    exchange: Exchange, answer: Answer, names: dict[str, str], numbers: Numbers
) -> tuple[Any, Any]:
    """Return recorded and played JSON, both without what may differ."""
    theirs = exchange.record["response_json"]
    ours = normalise.renamed(answer.json, names)
    if isinstance(ours, dict) and isinstance(theirs, dict) and "number" in ours:
        if "number" not in exchange.record["request_json"]:
            numbers.learn(abs(theirs["number"]), abs(ours["number"]))
        ours = {**ours, "number": numbers.shifted(ours["number"])}
    theirs, ours = normalise.value(theirs), normalise.value(numbers.in_items(ours))
    if exchange.path == "/queue" and exchange.method == "GET":
        # in the recording the waiting prompts stand in the order of a heap
        for queue in (theirs, ours):
            queue["queue_pending"].sort(key=lambda item: item[0])
    if exchange.path.startswith(LISTINGS):
        return sorted(map(str, theirs)), sorted(map(str, ours))
    if exchange.path.startswith("/internal/logs"):  # other lines are logged
        return type(theirs).__name__, type(ours).__name__
    return theirs, ours


def shortest(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Go down to the part that differs."""
    while isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        if len(keys) != 1 or keys[0] not in theirs or keys[0] not in ours:
            theirs = {k: theirs.get(k, "(missing)") for k in keys}
            ours = {k: ours.get(k, "(missing)") for k in keys}
            break
        theirs, ours = theirs[keys[0]], ours[keys[0]]
    return json.dumps(theirs)[:1500], json.dumps(ours)[:1500]


def events(recording: Recording, setup: Setup, played: Played) -> list[str]:
    """Say which sockets received something else, or in another order."""
    problems: list[str] = []
    for client in recording.clients:
        theirs = stream(client.messages, setup, {})
        ours = stream(played.received[client.name], setup, played.names)
        for part in ("status", "rest") if setup.status_apart else ("all",):
            one, other = pick(theirs, part), pick(ours, part)
            if part == "status":  # how many wait when a prompt begins is a race, here and there
                one, other = [(str(len(one)), one[-1])], [(str(len(other)), other[-1])]
            first = difference(one, other)
            if first:
                problems.append(f"socket {client.name} ({part}): {first}")
    return problems


def pick(found: list[tuple[str, Any]], part: str) -> list[tuple[str, Any]]:
    """Return the status messages, the others, or all."""
    if part == "all":
        return found
    return [m for m in found if (m[0] == "status") == (part == "status")]


def stream(messages: list[Message], setup: Setup, names: dict[str, str]) -> list[tuple[str, Any]]:
    """Return what a socket received without what may differ."""
    kept = [
        m
        for m in messages
        if not setup.steps_vary or (m.kind not in PROGRESS and m.kind != "binary")
    ]
    found = [
        normalise.message(
            m.kind,
            normalise.without(normalise.renamed(m.data, names) if names else m.data, setup.ignored),
        )
        for m in kept
    ]
    return by_branch(found) if setup.branches else found


def by_branch(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Put the events of each node together, and name nodes by the order in which they began."""
    order: dict[str, str] = {}
    kept = [(kind, data) for kind, data in found if kind != "progress_state"]
    for kind, data in kept:
        if kind == "executing" and data["node"] is not None:
            order.setdefault(data["node"], f"n{len(order)}")
    labelled = [
        (order.get(data.get("node") or "", ""), kind, {**data, "node": None, "display_node": None})
        for kind, data in kept
    ]
    return [(f"{node} {kind}", data) for node, kind, data in sorted(labelled, key=lambda m: m[0])]


def difference(theirs: list[tuple[str, Any]], ours: list[tuple[str, Any]]) -> str | None:
    """Describe the first difference of two streams."""
    for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one != other:
            if one[0] == other[0]:
                recorded, engine = shortest(one[1], other[1])
            else:
                recorded, engine = str(one)[:300], str(other)[:300]
            around = [kind for kind, _ in theirs[max(0, index - 3) : index + 3]]
            return (
                f"message {index} ({one[0]})\n  recorded: {recorded}\n  engine:   {engine}\n"
                f"  around: {around}\n  engine: {[k for k, _ in ours[max(0, index - 3) : index + 3]]}"
            )
    if len(theirs) != len(ours):
        return (
            f"{len(theirs)} messages recorded, {len(ours)} received; "
            f"extra {[k for k, _ in (theirs[len(ours) :] or ours[len(theirs) :])][:10]}"
        )
    return None
