"""Health checks of the vendor's JSON: Kubernetes' meaning, the vendor's names (eas-and-fc.md F.7)."""

from __future__ import annotations

from easel.services.model import HealthCheck
from easel.services.reading import Section

KINDS = ("http_get", "tcp_socket", "exec")


def read_check(check: Section) -> HealthCheck | None:
    """Read one check; faults are noted in its document."""
    given = [kind for kind in KINDS if check.has(kind)]
    if len(given) != 1:
        check.document.fault(check.path, f"needs exactly one of {', '.join(KINDS)}")
    path = port = None
    scheme, command = "http", []
    with check.section("http_get") as http:
        if check.has("http_get"):
            path = http.text("path", pattern=r"/\S*", words="must begin with /") or "/"
            port = http.whole("port", least=1, most=65535)
            named = http.text("scheme", pattern="(?i)https?", words="must be http or https")
            scheme = (named or "http").lower()
    with check.section("tcp_socket") as tcp:
        if check.has("tcp_socket"):
            port = tcp.whole("port", least=1, most=65535)
    with check.section("exec") as run:
        if check.has("exec"):
            command = run.texts("command")
            if not command:
                run.fault("command", "names no command")
    delay = check.number("initial_delay_seconds", most=86_400)
    period = check.number("period_seconds", least=0.1, most=86_400)
    timeout = check.number("timeout_seconds", least=0.1, most=3600)
    success = check.whole("success_threshold", least=1, most=1000)
    failure = check.whole("failure_threshold", least=1, most=100_000)
    return HealthCheck(
        path=path,
        port=port,
        scheme=scheme,
        command=command,
        initial_delay_seconds=delay or 0,
        period_seconds=period or 10,
        timeout_seconds=timeout or 1,
        success_threshold=success or 1,
        failure_threshold=failure or 3,
    )
