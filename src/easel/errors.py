"""Every error a caller can meet.

::

    EaselError
    ├── BadRequest                 400  bad_request
    │   ├── NotJson                400  not_json
    │   ├── InvalidTaskId          400  invalid_task_id
    │   ├── InvalidPrompt          400  invalid_prompt          (node_errors as ComfyUI writes them)
    │   │   ├── UiFormatWorkflow   400  ui_format_workflow
    │   │   └── TooManyNodes       400  too_many_nodes
    │   ├── InputRejected          400  input_rejected          (node, input)
    │   ├── InvalidSpec            400  invalid_spec            (every fault of a service's specification, with paths)
    │   └── BodyTooLarge           413  body_too_large
    ├── Unauthorized               401  unauthorized            (says nothing of what exists)
    ├── NotFound                   404  not_found
    │   ├── TaskNotFound           404  task_not_found
    │   ├── FileNotFound           404  file_not_found
    │   ├── ServiceNotFound        404  service_not_found
    │   └── InstanceNotFound       404  instance_not_found
    ├── RequestTimeout             408  request_timeout         (longer than the service's keepalive)
    ├── TaskConflict               409  task_conflict
    ├── TaskCancelled              409  task_cancelled
    ├── ServiceExists              409  service_exists
    ├── ServiceBusy                409  service_busy            (the operation does not fit what the service does now)
    ├── LeaseLost                  409  lease_lost              (the task has ended or is another instance's by now)
    ├── TooManyTasks               429  too_many_tasks
    │   └── QueueFull              450  queue_full              (the service's waiting line)
    ├── RateLimited                429  rate_limited
    ├── TaskTimeout                504  task_timeout            (ran longer than a task may)
    ├── TaskExpired                504  task_expired            (its deadline passed while it waited)
    ├── TaskLost                   502  task_lost               (every attempt's instance was lost; kept in the rear queue)
    ├── ExecutionFailed            500  execution_failed        (node, class, exception, traceback)
    ├── OutputFailed               502  output_failed           (an output could not be copied)
    ├── EngineError                502  engine_error
    │   ├── EngineUnavailable      503  engine_unavailable      (not started, starting, or refusing)
    │   ├── EngineDied             502  engine_died             (last log lines)
    │   ├── EngineSilent           504  engine_silent           (hung: nothing moved in time)
    │   ├── EngineProtocolError    502  engine_protocol_error
    │   └── PromptLost             502  prompt_lost             (in neither queue nor history)
    ├── NoHealthyUpstream          503  no_healthy_upstream     (no instance of the service is ready)
    ├── UpstreamFailed             502  upstream_failed         (the instance broke off)
    ├── UpstreamTimeout            504  upstream_timeout        (the instance did not answer in time)
    ├── InstanceFailed             500  instance_failed         (starting it again will not help; reason and advice)
    ├── StoreFailed                500  store_failed
    └── ConfigurationError         500  configuration_error     (settings, flags, missing programs)
        └── DatabaseTooNew         500  database_too_new        (a newer version of Easel has written it)

Each carries a stable ``code``, the HTTP status a door answers with, one sentence for people, and where it is known
the node, the input and a remedy (``hint``). `to_json` is the one translation to the wire.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EaselError(Exception):
    """Base of every error a caller can meet. ``str(error)`` is one clear sentence."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        node_id: str | None = None,
        node_type: str | None = None,
        input_name: str | None = None,
        log: list[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.node_id = node_id
        self.node_type = node_type
        self.input_name = input_name
        self.log = log
        """The engine's last log lines, where they say why."""

    def to_json(self) -> dict[str, Any]:
        """Return the error as a JSON object; keys without a value are left out."""
        fields = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "node_id": self.node_id,
            "node_type": self.node_type,
            "input": self.input_name,
            "log": self.log,
        }
        return {key: value for key, value in fields.items() if value is not None}


class BadRequest(EaselError):
    """The request itself is wrong; sending it again will not help."""

    code = "bad_request"
    http_status = 400


class NotJson(BadRequest):
    """The body is not JSON, or not a JSON object."""

    code = "not_json"


class InvalidTaskId(BadRequest):
    """A task id outside the allowed form (1-128 letters, digits, ``_``, ``-``, ``.``; no leading dot)."""

    code = "invalid_task_id"


class InvalidPrompt(BadRequest):
    """The prompt cannot be executed; ``node_errors`` and ``error`` have ComfyUI's own shape."""

    code = "invalid_prompt"

    def __init__(
        self,
        message: str,
        *,
        error: dict[str, Any] | None = None,
        node_errors: dict[str, Any] | None = None,
        hint: str | None = None,
        node_id: str | None = None,
        node_type: str | None = None,
        input_name: str | None = None,
    ) -> None:
        super().__init__(
            message, hint=hint, node_id=node_id, node_type=node_type, input_name=input_name
        )
        self.error = error or {
            "type": self.code,
            "message": message,
            "details": hint or "",
            "extra_info": {},
        }
        self.node_errors = node_errors or {}

    def to_json(self) -> dict[str, Any]:
        """Add ComfyUI's ``node_errors`` to the common shape."""
        return {**super().to_json(), "node_errors": self.node_errors}


class UiFormatWorkflow(InvalidPrompt):
    """A workflow saved by the front end (``nodes``/``links``) where the API format is needed."""

    code = "ui_format_workflow"


class TooManyNodes(InvalidPrompt):
    """More nodes than the service accepts in one prompt."""

    code = "too_many_nodes"


class InputRejected(BadRequest):
    """A file input that is unreachable, forbidden, too large, too slow or not what it claims to be."""

    code = "input_rejected"


class BodyTooLarge(BadRequest):
    """A request body over the limit."""

    code = "body_too_large"
    http_status = 413


class InvalidSpec(BadRequest):
    """A service's specification is wrong; ``faults`` names each place (``containers[0].port``) and what is wrong there."""

    code = "invalid_spec"

    def __init__(self, faults: list[tuple[str, str]], *, hint: str | None = None) -> None:
        first = f"{faults[0][0]}: {faults[0][1]}" if faults[0][0] else faults[0][1]
        rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(first + rest, hint=hint)
        self.faults = faults

    def to_json(self) -> dict[str, Any]:
        """Add every fault to the common shape."""
        listed = [{"path": path, "message": message} for path, message in self.faults]
        return {**super().to_json(), "errors": listed}


class Unauthorized(EaselError):
    """The token is missing or wrong, or the service does not exist: the caller cannot tell which."""

    code = "unauthorized"
    http_status = 401


class NotFound(EaselError):
    """There is nothing here for this caller."""

    code = "not_found"
    http_status = 404


class TaskNotFound(NotFound):
    """No task with this id is known."""

    code = "task_not_found"


class FileNotFound(NotFound):
    """No such stored file."""

    code = "file_not_found"


class ServiceNotFound(NotFound):
    """No service has this name."""

    code = "service_not_found"


class InstanceNotFound(NotFound):
    """No instance has this id."""

    code = "instance_not_found"


class RequestTimeout(EaselError):
    """The request took longer than the service allows."""

    code = "request_timeout"
    http_status = 408


class TaskConflict(EaselError):
    """The id is taken by a task with another body."""

    code = "task_conflict"
    http_status = 409


class TaskCancelled(EaselError):
    """The task was cancelled or interrupted before it finished."""

    code = "task_cancelled"
    http_status = 409


class ServiceExists(EaselError):
    """A service of this name is deployed already."""

    code = "service_exists"
    http_status = 409


class ServiceBusy(EaselError):
    """The operation does not fit what the service does now."""

    code = "service_busy"
    http_status = 409


class LeaseLost(EaselError):
    """The task has ended, or was given to another instance: this one may not write to it any more."""

    code = "lease_lost"
    http_status = 409


class TooManyTasks(EaselError):
    """The waiting line is full; try again later."""

    code = "too_many_tasks"
    http_status = 429


class QueueFull(TooManyTasks):
    """The service's waiting line is full (the vendor's own status, eas-and-fc.md C)."""

    code = "queue_full"
    http_status = 450


class RateLimited(EaselError):
    """More requests than the service takes."""

    code = "rate_limited"
    http_status = 429


class TaskTimeout(EaselError):
    """The task ran longer than ``agent.task_timeout`` allows."""

    code = "task_timeout"
    http_status = 504


class TaskExpired(EaselError):
    """The task's deadline passed while it waited."""

    code = "task_expired"
    http_status = 504


class TaskLost(EaselError):
    """Every attempt's instance was lost before the task ended; it is kept in the rear queue."""

    code = "task_lost"
    http_status = 502


class ExecutionFailed(EaselError):
    """A node raised while the prompt ran."""

    code = "execution_failed"

    def __init__(
        self,
        message: str,
        *,
        node_id: str | None = None,
        node_type: str | None = None,
        exception_type: str | None = None,
        traceback: list[str] | None = None,
        hint: str | None = None,
        log: list[str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, node_id=node_id, node_type=node_type, log=log)
        self.exception_type = exception_type
        self.traceback = traceback or []

    def to_json(self) -> dict[str, Any]:
        """Add the exception's class and traceback to the common shape."""
        return {
            **super().to_json(),
            "exception_type": self.exception_type,
            "traceback": self.traceback,
        }


class OutputFailed(EaselError):
    """An output the engine announced could not be copied into storage."""

    code = "output_failed"
    http_status = 502


class EngineError(EaselError):
    """The engine, not the request, is at fault."""

    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    """The engine does not answer: not started yet, starting, or refusing connections."""

    code = "engine_unavailable"
    http_status = 503


class EngineDied(EngineError):
    """The engine's process ended while it was needed."""

    code = "engine_died"


class EngineSilent(EngineError):
    """The engine lives but nothing moved within the allowed time."""

    code = "engine_silent"
    http_status = 504


class EngineProtocolError(EngineError):
    """The engine answered something that ComfyUI's protocol does not allow."""

    code = "engine_protocol_error"


class PromptLost(EngineError):
    """The prompt is neither in the engine's queue nor in its history."""

    code = "prompt_lost"


class NoHealthyUpstream(EaselError):
    """No instance of the service is ready; the message is the vendor's, which clients look for."""

    code = "no_healthy_upstream"
    http_status = 503


class UpstreamFailed(EaselError):
    """The instance broke off."""

    code = "upstream_failed"
    http_status = 502


class UpstreamTimeout(EaselError):
    """The instance did not answer in time."""

    code = "upstream_timeout"
    http_status = 504


class InstanceFailed(EaselError):
    """An instance cannot be started, and trying again will not help; ``reason`` is one word, ``hint`` the advice."""

    code = "instance_failed"

    def __init__(
        self, reason: str, message: str, *, hint: str | None = None, log: list[str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, log=log)
        self.reason = reason

    def to_json(self) -> dict[str, Any]:
        """Add the reason to the common shape."""
        return {**super().to_json(), "reason": self.reason}


class StoreFailed(EaselError):
    """The storage could not read or write."""

    code = "store_failed"


class ConfigurationError(EaselError):
    """Settings, flags or a missing program keep Easel from starting."""

    code = "configuration_error"


class DatabaseTooNew(ConfigurationError):
    """The database was written by a newer version of Easel."""

    code = "database_too_new"
