"""Running one prompt: what the outputs need, in order, with the cache, lists, interrupts and errors of ComfyUI."""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any

from easel.engine.caching import Cache, Key, Result, cache_keys, upstream_first
from easel.engine.context import Context, Execution
from easel.engine.node import Interrupted, NodeClass, NodeResult, Registry
from easel.engine.schedule import Schedule
from easel.workflow.types import NodeId, is_link

_RAISED = (Exception, SystemExit, GeneratorExit)


@dataclass(slots=True)
class Ended:
    """How a prompt ended, in the parts of its history entry."""

    success: bool
    outputs: dict[NodeId, dict[str, list[Any]]]
    meta: dict[NodeId, dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class _Failed(Exception):
    """A node raised."""

    def __init__(self, node_id: NodeId, cause: BaseException, inputs: dict[str, list[Any]]) -> None:
        super().__init__(node_id)
        self.node_id = node_id
        self.cause = cause
        self.inputs = inputs


class Executor:
    """Runs prompts one after the other on the worker thread; keeps the cache between them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cache = Cache()
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Release the event loop of asynchronous nodes."""
        self._loop.close()

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def run(self, execution: Execution) -> Ended:
        """Run a prompt to its end. Never raises for what its nodes do."""
        return _Run(execution, self._registry, self._cache, self._loop).run()


class _Run:
    def __init__(
        self,
        execution: Execution,
        registry: Registry,
        cache: Cache,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._execution = execution
        self._item = execution.item
        self._prompt = execution.item.prompt
        self._registry = registry
        self._cache = cache
        self._loop = loop
        self._results: dict[NodeId, Result] = {}
        self._readers: dict[NodeId, int] = {}
        self._keys: dict[NodeId, Key] = {}
        self._executed: list[NodeId] = []
        self._tasks: dict[asyncio.Future[Any], tuple[NodeId, dict[str, list[Any]]]] = {}
        self._ended = Ended(True, {}, {})

    def run(self) -> Ended:
        self._announce("execution_start", {})
        needed = upstream_first(self._prompt, self._item.outputs)
        self._keys = cache_keys(
            self._prompt,
            needed,
            self._registry,
            self._execution.folders,
            self._item.prompt_id,
        )
        self._cache.keep_only(self._keys.values())
        for node_id in self._prompt:
            found = self._cache.get(self._keys[node_id]) if node_id in self._keys else None
            if found is not None:
                self._results[node_id] = found
        self._announce("execution_cached", {"nodes": list(self._results)})
        schedule = Schedule(
            self._prompt,
            self._item.outputs,
            self._results,
            lambda n: inspect.iscoroutinefunction(self._class(n).run),
            lambda n: self._class(n).output_node,
        )
        try:
            self._work(schedule)
        except Interrupted:
            self._ended.success = False
            self._interrupted()
        except _Failed as failed:
            self._ended.success = False
            self._failed(failed)
        else:
            self._announce("execution_success", {})
        finally:
            self._drop_tasks()
        return self._ended

    def _work(self, schedule: Schedule) -> None:
        while len(schedule):
            node_id = schedule.take()
            if node_id is None:
                self._collect(schedule)
                continue
            if node_id in self._results:
                self._show(node_id, self._results[node_id])
                self._execution.finished(node_id)
                schedule.done(node_id)
                continue
            self._execution.current = node_id
            self._execution.started(node_id)
            self._execution.check()
            inputs = self._inputs(node_id)
            node_class = self._class(node_id)
            context = Context(self._execution, node_id)
            try:
                values = [
                    node_class.run(context, **one)
                    for one in _calls(inputs, node_class.input_is_list)
                ]
                waiting = [v for v in values if inspect.isawaitable(v)]
                if waiting:
                    self._await(node_id, values, inputs)
                    continue
                self._finish(node_id, values)
            except Interrupted:
                raise
            except _RAISED as error:
                raise _Failed(node_id, error, inputs) from error
            schedule.done(node_id)

    def _await(self, node_id: NodeId, values: list[Any], inputs: dict[str, list[Any]]) -> None:
        """Start a node's coroutines; other nodes run meanwhile."""

        async def all_of() -> list[Any]:
            return list(await asyncio.gather(*(_plain(value) for value in values)))

        self._tasks[self._loop.create_task(all_of())] = (node_id, inputs)
        self._loop.run_until_complete(asyncio.sleep(0))

    def _collect(self, schedule: Schedule) -> None:
        """Wait until a started coroutine ends, and take its result."""

        async def first() -> set[asyncio.Future[Any]]:
            while True:
                done, _ = await asyncio.wait(
                    self._tasks, timeout=0.1, return_when=asyncio.FIRST_COMPLETED
                )
                if done or self._execution.interrupted.is_set():
                    return done

        done = self._loop.run_until_complete(first())
        if not done:
            self._execution.check()
        for task in done:
            node_id, inputs = self._tasks.pop(task)
            self._execution.current = node_id
            try:
                self._finish(node_id, task.result())
            except Interrupted:
                raise
            except _RAISED as error:
                raise _Failed(node_id, error, inputs) from error
            schedule.done(node_id)

    def _drop_tasks(self) -> None:
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(self._tasks))
            for task in self._tasks:
                if not task.cancelled():
                    task.exception()
            self._tasks.clear()

    def _finish(self, node_id: NodeId, values: list[Any]) -> None:
        node_class = self._class(node_id)
        result = _merge(node_class, values)
        self._results[node_id] = result
        self._cache.put(self._keys[node_id], result)
        self._executed.append(node_id)
        self._show(node_id, result)
        self._execution.finished(node_id)

    def _show(self, node_id: NodeId, result: Result) -> None:
        if result.ui is None:
            return
        data = {"node": node_id, "display_node": node_id, "output": result.ui}
        self._execution.send("executed", {**data, "prompt_id": self._item.prompt_id})
        self._ended.outputs[node_id] = result.ui
        self._ended.meta[node_id] = {
            "node_id": node_id,
            "display_node": node_id,
            "parent_node": None,
            "real_node_id": node_id,
        }

    def _class(self, node_id: NodeId) -> NodeClass:
        node_class = self._registry.get(self._prompt[node_id]["class_type"])
        assert node_class is not None
        return node_class

    def _inputs(self, node_id: NodeId) -> dict[str, list[Any]]:
        """A list of values for every declared input that is given."""
        node_class = self._class(node_id)
        given = self._prompt[node_id]["inputs"]
        found: dict[str, list[Any]] = {}
        for name, value in given.items():
            if name not in node_class.required and name not in node_class.optional:
                continue
            found[name] = self._results[value[0]].slots[value[1]] if is_link(value) else [value]
        return found

    def _hidden(self, node_id: NodeId) -> dict[str, list[Any]]:
        """The hidden inputs a class declares, as an error shows them beside the others."""
        known = {
            "PROMPT": self._prompt,
            "EXTRA_PNGINFO": self._item.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
        }
        hidden = self._class(node_id).hidden
        return {name: [known[kind]] for name, kind in hidden.items() if kind in known}

    def _announce(self, event: str, data: dict[str, Any], *, everybody: bool = False) -> None:
        full = {"prompt_id": self._item.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self._ended.messages.append((event, full))
        self._execution.send(event, full, everybody=everybody)

    def _interrupted(self) -> None:
        node_id = self._execution.current
        self._announce(
            "execution_interrupted",
            {
                "node_id": node_id,
                "node_type": None if node_id is None else self._prompt[node_id]["class_type"],
                "executed": self._executed,
            },
            everybody=True,
        )

    def _failed(self, failed: _Failed) -> None:
        cause = failed.cause
        kind = type(cause)
        name = kind.__qualname__
        if kind.__module__ not in ("builtins", "__main__"):
            name = f"{kind.__module__}.{name}"
        self._announce(
            "execution_error",
            {
                "node_id": failed.node_id,
                "node_type": self._prompt[failed.node_id]["class_type"],
                "executed": self._executed,
                "exception_message": f"{cause}\n",
                "exception_type": name,
                "traceback": traceback.format_tb(cause.__traceback__),
                "current_inputs": {
                    k: [_shown(v) for v in vs]
                    for k, vs in {**failed.inputs, **self._hidden(failed.node_id)}.items()
                },
                "current_outputs": list(self._prompt),
            },
        )


async def _plain(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


def _shown(value: Any) -> Any:
    """A value as an error shows it: simple ones as they are, others as text of bounded length."""
    if value is None or isinstance(value, int | float | bool | str):
        return value
    return str(value)[:2000]


def _calls(inputs: dict[str, list[Any]], input_is_list: bool) -> Iterator[dict[str, Any]]:
    """The calls a node makes for its inputs: one for each position of the longest list, shorter ones repeat their last."""
    if input_is_list or not inputs:
        yield dict(inputs)
        return
    longest = max(len(values) for values in inputs.values())
    for n in range(longest):
        yield {name: values[min(n, len(values) - 1)] for name, values in inputs.items() if values}


def _merge(node_class: NodeClass, returned: list[Any]) -> Result:
    """Put the calls' values together: a list for each slot, and the concatenated ui outputs."""
    slots: list[list[Any]] = [[] for _ in node_class.outputs]
    ui: dict[str, list[Any]] | None = None
    for one in returned:
        result = one if isinstance(one, NodeResult) else NodeResult(one or ())
        for slot, value in enumerate(result.values[: len(slots)]):
            if node_class.outputs[slot].is_list:
                slots[slot].extend(value)
            else:
                slots[slot].append(value)
        if result.ui is not None:
            ui = ui if ui is not None else {}
            for name, values in result.ui.items():
                ui.setdefault(name, []).extend(values)
    return Result(slots, ui)
