"""What Prometheus reads at ``/metrics``. Times are in seconds, sizes in bytes.

Other rooms get `Metrics` handed to them and call its methods; nothing here knows them. What is a state rather than an event
(tasks waiting, instances by status) is counted when somebody looks: `Gauges`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector

from easel.services.model import Instance
from easel.services.store import ServiceStore
from easel.tasks.model import FINISHED, State, Task

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LONG = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "easel_requests",
            "Requests answered; service is empty for callers that were not let in.",
            ("door", "service", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "easel_request_seconds",
            "Time from a request's head to the end of its answer (WebSockets: as long as they were open).",
            ("door",),
            buckets=SHORT,
            registry=registry,
        )
        self._bytes = Counter(
            "easel_proxied_bytes",
            "Bytes of bodies and messages passed on; up is towards the instance.",
            ("service", "direction"),
            registry=registry,
        )
        self._ended = Counter(
            "easel_tasks_ended", "Tasks that ended.", ("service", "state"), registry=registry
        )
        self._wait = Histogram(
            "easel_task_wait_seconds",
            "Time from a task's acceptance to the start of its last attempt.",
            ("service",),
            buckets=SHORT,
            registry=registry,
        )
        self._run = Histogram(
            "easel_task_run_seconds",
            "Time a task ran.",
            ("service",),
            buckets=LONG,
            registry=registry,
        )
        self._device = Counter(
            "easel_device_seconds",
            "Time devices ran tasks.",
            ("service",),
            registry=registry,
        )
        self._start = Histogram(
            "easel_instance_start_seconds",
            "Time from an instance's start to its engine being ready.",
            ("service",),
            buckets=LONG,
            registry=registry,
        )
        self._queue = Gauge(
            "easel_queue_depth", "Tasks that wait.", ("service",), registry=registry
        )
        self._tasks = Gauge(
            "easel_tasks", "Tasks kept, by state.", ("service", "state"), registry=registry
        )
        self._services = Gauge(
            "easel_service_status",
            "1 for the status a service has.",
            ("service", "status"),
            registry=registry,
        )
        self._instances = Gauge(
            "easel_instances", "Instances by status.", ("service", "status"), registry=registry
        )
        self._counted_starts: set[tuple[str, int | None]] = set()
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._second_children: dict[str, Histogram] = {}
        self._byte_children: dict[str, tuple[Counter, Counter]] = {}

    # Events.

    def request_ended(
        self, door: str, service: str, status: int, seconds: float, *, up: int, down: int
    ) -> None:
        """Count a request."""
        key = (door, service, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(door, service, str(status))
        child.inc()
        timer = self._second_children.get(door)
        if timer is None:
            timer = self._second_children[door] = self._seconds.labels(door)
        timer.observe(seconds)
        if up or down:
            both = self._byte_children.get(service)
            if both is None:
                both = self._byte_children[service] = (
                    self._bytes.labels(service, "up"),
                    self._bytes.labels(service, "down"),
                )
            both[0].inc(up)
            both[1].inc(down)

    def task_ended(self, task: Task) -> None:
        """Count an ended task, once (`Tasks.on_ended`)."""
        if task.state not in FINISHED:
            return
        self._ended.labels(task.service, task.state).inc()
        if task.started is None:
            return
        self._wait.labels(task.service).observe(max(0, task.started - task.created) / 1000)
        if task.ended is not None:
            ran = max(0, task.ended - task.started) / 1000
            self._run.labels(task.service).observe(ran)
            self._device.labels(task.service).inc(ran)

    def instances_started(self, instances: Iterable[Instance]) -> None:
        """Count each start of these instances that was not counted yet: how long it took until the engine was ready."""
        begun = {
            (one.id, one.ready_at): one
            for one in instances
            if one.started is not None and one.ready_at is not None
        }
        for key, one in begun.items():
            if key not in self._counted_starts:
                assert one.started is not None
                assert one.ready_at is not None
                seconds = max(0, one.ready_at - one.started) / 1000
                self._start.labels(one.service).observe(seconds)
        self._counted_starts = set(begun)

    # States.

    def set_tasks(self, counts: dict[str, dict[State, int]]) -> None:
        """Set how many tasks of each service are in each state."""
        self._tasks.clear()
        self._queue.clear()
        for service, states in counts.items():
            self._queue.labels(service).set(states.get("queued", 0))
            for state, count in states.items():
                self._tasks.labels(service, state).set(count)

    def set_instances(self, instances: Iterable[Instance]) -> None:
        """Set how many instances of each service have each status."""
        self._instances.clear()
        for one in instances:
            self._instances.labels(one.service, one.status).inc()

    def set_services(self, statuses: dict[str, str]) -> None:
        """Set the status of each service."""
        self._services.clear()
        for service, status in statuses.items():
            self._services.labels(service, status).set(1)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class TaskCounts(Protocol):
    """The part of the task store that is needed here."""

    async def counts(self, service: str) -> dict[State, int]:
        """Return how many tasks are in each state."""


def gauges(
    metrics: Metrics, services: ServiceStore, tasks: TaskCounts
) -> Callable[[], Awaitable[None]]:
    """Return what sets the states from the stores; it raises StoreFailed."""

    async def refresh() -> None:
        found = await services.all()
        metrics.set_tasks({one.name: await tasks.counts(one.name) for one in found})
        instances = await services.instances()
        metrics.set_instances(instances)
        metrics.instances_started(instances)
        metrics.set_services({one.name: one.status for one in found})

    return refresh
