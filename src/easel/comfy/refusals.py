"""ComfyUI's refusals as Easel's errors."""

from __future__ import annotations

from typing import Any

import msgspec

from easel.errors import (
    BodyTooLarge,
    EaselError,
    EngineProtocolError,
    EngineUnavailable,
    InvalidPrompt,
)

_WORDS = 500


def refusal(what: str, status: int, raw: bytes) -> EaselError:
    """Return the error for an answer other than 200; ``what`` is the request (``POST /prompt``).

    InvalidPrompt for the 400 of ``POST /prompt`` (``{error: {type, message, details, extra_info}, node_errors}``),
    BodyTooLarge for 413, EngineUnavailable for a gateway's 502, 503 and 504, else EngineProtocolError.
    """
    if status == 413:
        return BodyTooLarge(
            f"the engine refuses {what}: the body is too large",
            hint="ComfyUI's --max-upload-size allows more",
        )
    if status in (502, 503, 504):
        return EngineUnavailable(f"the engine is not there: {what} was answered with {status}")
    if status == 400:
        invalid = _invalid_prompt(raw)
        if invalid is not None:
            return invalid
    text = raw[:_WORDS].decode(errors="replace").strip()
    return EngineProtocolError(f"the engine answered {what} with {status}: {text}")


def _invalid_prompt(raw: bytes) -> InvalidPrompt | None:
    """Read a validation failure; the first bad node and input are named in the error."""
    try:
        answer = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, str):  # older versions
        error = {"type": "invalid_prompt", "message": error, "details": "", "extra_info": {}}
    if not isinstance(error, dict):
        return None
    node_errors = answer.get("node_errors")
    node_errors = node_errors if isinstance(node_errors, dict) else {}
    node_id, node_type, first = _first(node_errors)
    extra = first.get("extra_info")
    name = extra.get("input_name") if isinstance(extra, dict) else None
    words = [str(error.get("message") or "the engine refuses the prompt")]
    if first:
        words.append(f"node {node_id} ({node_type}): {_sentence(first)}")
    elif error.get("details"):
        words.append(str(error["details"]))
    return InvalidPrompt(
        ": ".join(words),
        error=error,
        node_errors=node_errors,
        node_id=node_id,
        node_type=node_type,
        input_name=name if isinstance(name, str) else None,
    )


def _first(node_errors: dict[str, Any]) -> tuple[str | None, str | None, dict[str, Any]]:
    """Return node id, class and first error of the first node that has one."""
    for node_id, entry in node_errors.items():
        errors = entry.get("errors") if isinstance(entry, dict) else None
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            return node_id, str(entry.get("class_type")), errors[0]
    return None, None, {}


def _sentence(error: dict[str, Any]) -> str:
    message, details = error.get("message"), error.get("details")
    return f"{message} ({details})" if details else str(message)
