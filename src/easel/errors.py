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
    │   └── BodyTooLarge           413  body_too_large
    ├── TaskNotFound               404  task_not_found
    ├── FileNotFound               404  file_not_found
    ├── TaskConflict               409  task_conflict
    ├── TaskCancelled              409  task_cancelled
    ├── TooManyTasks               429  too_many_tasks
    ├── TaskTimeout                504  task_timeout            (ran longer than a task may)
    ├── ExecutionFailed            500  execution_failed        (node, class, exception, traceback)
    ├── OutputFailed               502  output_failed           (an output could not be copied)
    ├── EngineError                502  engine_error
    │   ├── EngineUnavailable      503  engine_unavailable      (not started, starting, or refusing)
    │   ├── EngineDied             502  engine_died             (last log lines)
    │   ├── EngineSilent           504  engine_silent           (hung: nothing moved in time)
    │   ├── EngineProtocolError    502  engine_protocol_error
    │   └── PromptLost             502  prompt_lost             (in neither queue nor history)
    ├── StoreFailed                500  store_failed
    └── ConfigurationError         500  configuration_error     (settings, flags, missing programs)

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


class TaskNotFound(EaselError):
    """No task with this id is known."""

    code = "task_not_found"
    http_status = 404


class FileNotFound(EaselError):
    """No such stored file."""

    code = "file_not_found"
    http_status = 404


class TaskConflict(EaselError):
    """The id is taken by a task with another body."""

    code = "task_conflict"
    http_status = 409


class TaskCancelled(EaselError):
    """The task was cancelled or interrupted before it finished."""

    code = "task_cancelled"
    http_status = 409


class TooManyTasks(EaselError):
    """The waiting line is full; try again later."""

    code = "too_many_tasks"
    http_status = 429


class TaskTimeout(EaselError):
    """The task ran longer than ``agent.task_timeout`` allows."""

    code = "task_timeout"
    http_status = 504


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


class StoreFailed(EaselError):
    """The progress store could not read or write."""

    code = "store_failed"


class ConfigurationError(EaselError):
    """Settings, flags or a missing program keep Easel from starting."""

    code = "configuration_error"
