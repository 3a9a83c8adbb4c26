"""The built-in engine without its HTTP side: validates, queues and runs prompts on one worker thread."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from easel.engine.context import Execution
from easel.engine.events import EventSink
from easel.engine.executor import Ended, Executor
from easel.engine.folders import Folders
from easel.engine.history import History
from easel.engine.node import NodeClass, Registry
from easel.engine.object_info import class_info
from easel.engine.queue import Item, PromptQueue
from easel.engine.submission import (
    PromptRefused,
    check_writable,
    class_names,
    extra_data_of,
    number_of,
    prompt_id_of,
    refusal,
)
from easel.workflow.types import NodeId
from easel.workflow.validate import Custom, validate_prompt

__all__ = ["Engine", "PromptRefused"]

log = logging.getLogger(__name__)

_SECRET = ("auth_token_comfy_org", "api_key_comfy_org")
"""Keys of ``extra_data`` that are never shown again."""


class Engine:
    """ComfyUI's execution semantics over a registry of nodes. Every method is thread-safe and returns at once."""

    def __init__(
        self,
        registry: Registry,
        folders: Folders,
        sink: EventSink,
        *,
        previews: bool = False,
        history_limit: int = 10_000,
    ) -> None:
        self._registry = registry
        self._folders = folders
        self._sink = sink
        self._previews = previews
        self._static = {c.name: class_info(c, folders) for c in registry if not c.lists_files}
        """Entries of ``/object_info`` that never change."""
        self._queue = PromptQueue(sink.queue_changed)
        self._history = History(history_limit)
        self._lock = threading.Lock()
        self._counter = 0
        self._execution: Execution | None = None
        self._free = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker thread."""
        self._thread = threading.Thread(target=self._work, name="easel-engine", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5) -> None:
        """Interrupt what runs, and wait up to `timeout` seconds for the worker thread to end."""
        self._queue.close()
        self.interrupt()
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def stopped(self) -> bool:
        """Whether the worker thread has ended, or was never started."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, body: object) -> dict[str, Any]:
        """Validate and queue the parsed body of ``POST /prompt``.

        Returns ``{"prompt_id", "number", "node_errors"}``. Raises `PromptRefused`; the queue is then as before.
        """
        if not isinstance(body, dict) or "prompt" not in body:
            raise refusal("no_prompt", "No prompt provided", "No prompt provided")
        check_writable(body)
        prompt_id = prompt_id_of(body)
        extra_data = extra_data_of(body)
        targets = body.get("partial_execution_targets")
        if targets is not None and not (
            isinstance(targets, list) and all(isinstance(t, str) for t in targets)
        ):
            raise refusal(
                "invalid_request", "partial_execution_targets must be a list of node ids", ""
            )
        prompt = body["prompt"]
        verdict = validate_prompt(
            prompt,
            self.object_info(class_names(prompt)),
            targets=None if targets is None else frozenset(targets),
            check=self._check,
        )
        if verdict.error is not None:
            raise PromptRefused(verdict.error, verdict.node_errors)
        client_id = extra_data.get("client_id")
        with self._lock:
            number = number_of(body, self._counter)
            if body.get("number") is None:
                self._counter += 1
        item = Item(number, prompt_id, prompt, extra_data, verdict.outputs, client_id)
        if not self._queue.put(item):
            raise refusal("duplicate_prompt_id", "A prompt with this id waits or runs", prompt_id)
        return {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}

    def object_info(self, name: str | set[str] | None = None) -> dict[str, Any]:
        """Return ``/object_info``: of one class, of some, or of all. Unknown names are left out."""
        wanted: list[NodeClass]
        if name is None:
            wanted = list(self._registry)
        else:
            names = {name} if isinstance(name, str) else name
            wanted = [c for c in map(self._registry.get, sorted(names)) if c is not None]
        return {c.name: self._static.get(c.name) or class_info(c, self._folders) for c in wanted}

    def queue(self) -> dict[str, Any]:
        """Return ``/queue``'s answer."""
        return self._queue.listed()

    @property
    def remaining(self) -> int:
        """Prompts that wait or run."""
        return self._queue.remaining

    def clear_pending(self) -> None:
        """Remove every waiting prompt."""
        self._queue.remove(None)

    def delete_pending(self, prompt_ids: list[str]) -> None:
        """Remove waiting prompts."""
        self._queue.remove(set(prompt_ids))

    def history(
        self, prompt_id: str | None = None, *, max_items: int | None = None, offset: int = -1
    ) -> dict[str, Any]:
        """Return ``/history``'s answer."""
        if prompt_id is not None:
            return self._history.get(prompt_id)
        return self._history.listed(max_items, offset)

    def clear_history(self) -> None:
        """Forget every ended prompt."""
        self._history.remove(None)

    def delete_history(self, prompt_ids: list[str]) -> None:
        """Forget ended prompts."""
        self._history.remove(prompt_ids)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt what runs; with an id only that prompt, if it runs."""
        item = self._queue.running
        if item is not None and prompt_id in {None, item.prompt_id}:
            item.interrupted.set()

    def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Empty the cache before the next prompt, or at once when idle.

        ``unload_models`` alone leaves the cache as it is, as in ComfyUI; there are no models to unload.
        """
        if free_memory:
            self._free = True
            self._queue.wake()

    def running_node(self, client_id: str) -> NodeId | None:
        """Return the node that runs now for this client."""
        execution = self._execution
        if execution is None or execution.item.client_id != client_id:
            return None
        return execution.current

    def _check(self, node_id: NodeId, name: str, constants: Mapping[str, Any]) -> Custom | None:
        """Call a class's own validation with the inputs it names."""
        node_class = self._registry.get(name)
        if node_class is None or node_class.validate is None:
            return None
        parameters = list(inspect.signature(node_class.validate).parameters.values())[1:]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            names = [n for n in constants if node_class.declares(n)]
        else:
            names = [p.name for p in parameters]
        given = {n: constants[n] for n in names if n in constants}
        verdict = node_class.validate(self._folders, **given)
        if verdict is True:
            return Custom(names)
        reason = verdict if isinstance(verdict, str) else "refused"
        return Custom(names, dict.fromkeys(given, reason))

    def _work(self) -> None:
        """The worker thread: one prompt after the other, whatever happens."""
        executor = Executor(self._registry)
        try:
            while True:
                item = self._queue.take(lambda: self._free)
                if self._free:
                    self._free = False
                    executor.forget()
                if item is not None:
                    self._run(executor, item)
                elif self._queue.closed:
                    return
        finally:
            executor.close()

    def _run(self, executor: Executor, item: Item) -> None:
        execution = Execution(item, self._sink, self._folders, previews=self._previews)
        self._execution = execution
        if self._queue.closed:  # `stop` may have looked a moment too early
            item.interrupted.set()
        began = time.monotonic()
        ended = Ended(False, {}, {})
        try:
            ended = executor.run(execution)
        except BaseException:  # the thread goes on, and nobody waits for a prompt that is nowhere
            log.exception("prompt %s could not be run", item.prompt_id)
        self._history.add(_shown(item), ended)
        self._execution = None
        self._queue.done()
        log.info("Prompt executed in %.2f seconds", time.monotonic() - began)
        if item.client_id is not None:
            data = {"node": None, "prompt_id": item.prompt_id}
            self._sink.send("executing", data, item.client_id)


def _shown(item: Item) -> Item:
    """The item as history shows it: without secrets."""
    if not any(key in item.extra_data for key in _SECRET):
        return item
    extra_data = {k: v for k, v in item.extra_data.items() if k not in _SECRET}
    return Item(item.number, item.prompt_id, item.prompt, extra_data, item.outputs, item.client_id)
