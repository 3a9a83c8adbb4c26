"""Running one prompt: what the outputs need, in order, with the cache, lists, interrupts and errors of ComfyUI."""

from __future__ import annotations

import inspect
import logging
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from easel.engine.caching import Cache, Keys, Result, cache_keys, upstream_first
from easel.engine.calls import calls, merged
from easel.engine.context import Context, Execution
from easel.engine.coroutines import Coroutines
from easel.engine.node import Interrupted, NodeClass, Registry
from easel.engine.schedule import Schedule
from easel.workflow.constants import text
from easel.workflow.types import NodeId, is_link, unwrapped

log = logging.getLogger(__name__)

LONGEST_SHOWN = 2000
"""Characters of a value's text in an error."""


@dataclass(slots=True)
class Ended:
    """How a prompt ended, in the parts of its history entry."""

    success: bool
    outputs: dict[NodeId, dict[str, list[Any]]]
    meta: dict[NodeId, dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Executor:
    """Runs prompts one after the other on the worker thread; keeps the cache between them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cache = Cache()
        self._coroutines = Coroutines()

    def close(self) -> None:
        """Release the event loop of asynchronous nodes."""
        self._coroutines.close()

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def run(self, execution: Execution) -> Ended:
        """Run a prompt to its end. Never raises for what its nodes do."""
        return _Run(execution, self._registry, self._cache, self._coroutines).run()


class _Run:
    """One prompt, from its first event to its last."""

    def __init__(
        self, execution: Execution, registry: Registry, cache: Cache, coroutines: Coroutines
    ) -> None:
        self._execution = execution
        self._item = execution.item
        self._prompt = execution.item.prompt
        self._registry = registry
        self._cache = cache
        self._coroutines = coroutines
        self._classes: dict[NodeId, NodeClass] = {}
        self._needs: dict[NodeId, list[NodeId]] = {}
        self._unread: Counter[NodeId] = Counter()
        """How many nodes have not yet run that take inputs from a node."""
        self._keys = Keys({}, set())
        self._results: dict[NodeId, Result] = {}
        self._inputs: dict[NodeId, dict[str, list[Any]]] = {}
        """Of the nodes that have begun and not ended, for errors."""
        self._at: NodeId | None = None
        """The node that is at fault for what is raised."""
        self._executed: list[NodeId] = []
        self._ended = Ended(False, {}, {})

    def run(self) -> Ended:
        """Run to the end, whatever happens on the way."""
        self._announce("execution_start", {})
        try:
            self._work(self._plan())
        except Interrupted:
            self._interrupted()
        except BaseException as error:  # noqa: BLE001 - a pack's own code; the thread outlives SystemExit, too
            self._failed(error)
        else:
            self._ended.success = True
            self._announce("execution_success", {})
        finally:
            self._coroutines.drop()
        return self._ended

    def _plan(self) -> Schedule:
        """See what is needed and what of it is cached."""
        for node_id, node in self._prompt.items():
            node_class = self._registry.get(node["class_type"])
            assert node_class is not None
            self._classes[node_id] = node_class
        self._needs = upstream_first(self._prompt, self._item.outputs, self._classes)
        self._unread.update(other for needs in self._needs.values() for other in needs)
        self._keys = cache_keys(
            self._prompt,
            self._needs,
            self._classes,
            self._execution.folders,
            self._item.prompt_id,
        )
        keys = self._keys.of
        self._cache.keep_only(keys.values())
        for node_id in self._prompt:
            found = self._cache.get(keys[node_id]) if node_id in keys else None
            if found is not None:
                self._results[node_id] = found
        self._announce("execution_cached", {"nodes": list(self._results)})
        return Schedule(
            self._needs,
            self._item.outputs,
            self._results,
            lambda n: self._classes[n].output_node,
            lambda n: self._classes[n].is_async,
        )

    def _work(self, schedule: Schedule) -> None:
        while len(schedule):
            node_id = schedule.take()
            if node_id is None:
                node_id = self._collect()
            elif not self._begin(node_id):
                continue
            schedule.done(node_id)

    def _begin(self, node_id: NodeId) -> bool:
        """Run a node; the answer is whether it has ended (a coroutine may go on)."""
        self._at = node_id
        # A twin of it, with the same class and inputs, may have run a moment ago.
        found = self._results.get(node_id) or self._cache.get(self._keys.of[node_id])
        if found is not None:
            self._results[node_id] = found
            self._show(node_id, found, cached=True)
            self._execution.finished(node_id)
            return True
        self._execution.started(node_id)
        self._execution.check()
        node_class = self._classes[node_id]
        inputs = self._inputs[node_id] = self._gathered(node_id)
        context = Context(self._execution, node_id)
        returned = [node_class.run(context, **one) for one in calls(inputs, node_class)]
        if any(map(inspect.isawaitable, returned)):
            self._coroutines.start(node_id, returned)
            return False
        self._finish(node_id, returned)
        return True

    def _collect(self) -> NodeId:
        """Wait until one of the started coroutines ends, and take its result."""
        waiting = self._coroutines.first()
        self._at = self._execution.current = waiting
        node_id, returned, error = self._coroutines.take(self._execution.interrupted)
        self._at = self._execution.current = node_id
        if error is not None:
            raise error
        self._finish(node_id, returned)
        return node_id

    def _finish(self, node_id: NodeId, returned: list[Any]) -> None:
        result = merged(self._classes[node_id], returned)
        self._inputs.pop(node_id, None)
        self._results[node_id] = result
        volatile = self._keys.volatile
        if node_id not in volatile:
            self._cache.put(self._keys.of[node_id], result)
        self._executed.append(node_id)
        self._show(node_id, result)
        self._execution.finished(node_id)
        needs = self._needs[node_id]
        self._unread.subtract(needs)
        if volatile:  # what nobody reads any more and no prompt to come can use is let go
            for other in (*needs, node_id):
                if other in volatile and not self._unread[other]:
                    del self._results[other]

    def _show(self, node_id: NodeId, result: Result, *, cached: bool = False) -> None:
        """Send a node's output. A cached node says that it has none, too, as in ComfyUI."""
        if result.ui is None and not cached:
            return
        data = {"node": node_id, "display_node": node_id, "output": result.ui}
        self._execution.send("executed", {**data, "prompt_id": self._item.prompt_id})
        if result.ui is not None:
            self._ended.outputs[node_id] = result.ui
            self._ended.meta[node_id] = {
                "node_id": node_id,
                "display_node": node_id,
                "parent_node": None,
                "real_node_id": node_id,
            }

    def _gathered(self, node_id: NodeId) -> dict[str, list[Any]]:
        """A list of values for every declared input that is given."""
        node_class = self._classes[node_id]
        found: dict[str, list[Any]] = {}
        for name, value in self._prompt[node_id]["inputs"].items():
            if not is_link(value):
                if node_class.declares(name):
                    found[name] = [unwrapped(value)]
            elif node_class.declares(name):
                found[name] = self._results[value[0]].slots[value[1]]
            else:  # ComfyUI leaves undeclared constants out and passes undeclared links on
                raise TypeError(f"{node_class.name} got an unexpected keyword argument {name!r}")
        return found

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

    def _failed(self, cause: BaseException) -> None:
        node_id = self._at
        if node_id is None:
            log.error(
                "prompt %s failed before its first node", self._item.prompt_id, exc_info=cause
            )
        kind = type(cause)
        name = kind.__qualname__
        if kind.__module__ not in ("builtins", "__main__"):
            name = f"{kind.__module__}.{name}"
        self._announce(
            "execution_error",
            {
                "node_id": node_id,
                "node_type": None if node_id is None else self._prompt[node_id]["class_type"],
                "executed": self._executed,
                "exception_message": f"{text(cause)}\n",
                "exception_type": name,
                "traceback": traceback.format_tb(cause.__traceback__),
                "current_inputs": {} if node_id is None else self._shown_inputs(node_id),
                "current_outputs": list(self._prompt),
            },
        )

    def _shown_inputs(self, node_id: NodeId) -> dict[str, list[Any]]:
        """The inputs of a node and the hidden ones its class declares, as an error shows them."""
        known = {
            "PROMPT": self._prompt,
            "EXTRA_PNGINFO": self._item.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
        }
        hidden = self._classes[node_id].hidden if node_id in self._classes else {}
        inputs = {
            **self._inputs.get(node_id, {}),
            **{name: [known[kind]] for name, kind in hidden.items() if kind in known},
        }
        return {name: [_shown(value) for value in values] for name, values in inputs.items()}


def _shown(value: Any) -> Any:
    """A value as an error shows it: simple ones as they are, others as text of bounded length."""
    if value is None or type(value) in {int, float, bool, str}:
        return value
    return text(value)[:LONGEST_SHOWN]
