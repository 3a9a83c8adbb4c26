"""A task's progress on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from easel.cli.addresses import title_of
from easel.cli.wire import Update
from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId, Prompt

if TYPE_CHECKING:
    from rich.progress import Progress


class Display(Protocol):
    """Shows how a task goes."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""

    def note(self, text: str) -> None:
        """Say something once."""

    def update(self, update: Update) -> None:
        """Show a progress message."""


def display_for(prompt: Prompt, name: str, *, quiet: bool = False) -> Display:
    """Return bars when standard error is a terminal, else lines (none when quiet)."""
    return Bars(prompt, name) if sys.stderr.isatty() and not quiet else Lines(prompt, quiet=quiet)


def label(prompt: Prompt, node_id: NodeId) -> str:
    """Return a node's name for people: ``Sampler (KSampler)``, or only its class."""
    # An expanded node's id is made by the engine and is not in the prompt.
    if node_id not in prompt:
        return f"node {node_id}"
    class_type, title = prompt[node_id]["class_type"], title_of(prompt, node_id)
    return class_type if title in ("", class_type) else f"{title} ({class_type})"


class Lines:
    """A line each time the task comes to another node or moves up in the queue."""

    def __init__(self, prompt: Prompt, *, quiet: bool = False) -> None:
        self._prompt = prompt
        self._quiet = quiet
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def note(self, text: str) -> None:
        """Print a line unless it was the last one."""
        if text != self._last and not self._quiet:
            print(text, file=sys.stderr, flush=True)
        self._last = text

    def update(self, update: Update) -> None:
        """Print what is new."""
        if update.current_node is not None:
            text = label(self._prompt, update.current_node)
            if text != self._last.partition("%  ")[2]:
                self.note(f"{update.percent or 0:3.0f}%  {text}")
        elif update.state == "queued" and update.queue_position:
            self.note(f"waiting: position {update.queue_position}")


class Bars:
    """Two bars: the whole task and the current node."""

    def __init__(self, prompt: Prompt, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._prompt = prompt
        self._progress: Progress = Progress(
            TextColumn("{task.description:<32.32}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._whole = self._progress.add_task(name, total=100, steps="")
        self._name = name
        self._node = self._progress.add_task("", total=1, visible=False, steps="")
        self._current: NodeId | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.update(self._node, visible=False)
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def update(self, update: Update) -> None:
        """Move the bars."""
        waiting = update.state == "queued" and update.queue_position
        self._progress.update(
            self._whole,
            completed=update.percent or 0,
            description=f"waiting: position {update.queue_position}" if waiting else self._name,
        )
        node_id = update.current_node
        if node_id is None:
            self._progress.update(self._node, visible=False)
            self._current = None
            return
        if node_id != self._current:
            self._current = node_id
            self._progress.reset(self._node, total=1, description=label(self._prompt, node_id))
        node = update.nodes().get(node_id, NodeProgress())
        self._progress.update(
            self._node,
            visible=True,
            completed=node.value,
            total=node.max or 1,
            steps=f"{node.value:g}/{node.max:g}" if node.max > 1 else "",
        )
