"""More of the platform's commands: those that change a service, and those that use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easel.cli.platform.options import Json, Name, Wait, connected

if TYPE_CHECKING:
    from easel.cli.platform.where import Where


def add_operations(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    @connected
    def scale(
        *,
        where: Where,
        name: Name,
        instances: Annotated[int, typer.Argument(min=0, help="How many instances.")],
        wait: Wait = True,
        as_json: Json = False,
    ) -> int:
        """Change how many instances a service has."""
        from easel.cli.platform import doing

        return doing.change(
            where,
            name,
            "scale",
            {"instances": instances},
            wanted="Running",
            wait=wait,
            as_json=as_json,
        )

    def simple(verb: str, wanted: str, words: str) -> None:
        @app.command(verb, help=words)
        @connected
        def command(
            *,
            where: Where,
            name: Name,
            wait: Wait = True,
            as_json: Json = False,
        ) -> int:
            from easel.cli.platform import doing

            return doing.change(where, name, verb, {}, wanted=wanted, wait=wait, as_json=as_json)

    simple(
        "stop", "Stopped", "Stop a service's instances; its definition and its waiting tasks stay."
    )
    simple("start", "Running", "Start a stopped or failed service.")
    simple("restart", "Running", "Replace every instance of a service.")

    @app.command()
    @connected
    def rollback(
        *,
        where: Where,
        name: Name,
        revision: Annotated[
            int | None, typer.Option(help="To this one; default: the latest that was ready.")
        ] = None,
        wait: Wait = True,
        as_json: Json = False,
    ) -> int:
        """Go back to an earlier revision."""
        from easel.cli.platform import doing

        return doing.change(
            where,
            name,
            "rollback",
            {"revision": revision},
            wanted="Running",
            wait=wait,
            as_json=as_json,
        )

    @app.command()
    @connected
    def delete(
        *,
        where: Where,
        name: Name,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
        wait: Wait = True,
    ) -> int:
        """Delete a service with its tasks; its storage stays."""
        from easel.cli.platform import doing

        return doing.delete(where, name, yes=yes, wait=wait)

    @app.command()
    @connected
    def endpoint(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """Show how a service is called: endpoint, token, and calls to paste."""
        from easel.cli.platform import doing

        return doing.endpoint(where, name, as_json=as_json)

    @app.command("reset-token")
    @connected
    def reset_token(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """Give a service a new token; the old one is refused at once."""
        return _show(where, name, "token", {}, key="token", as_json=as_json)

    @app.command("join-token")
    @connected
    def join_token(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """Print the token with which `easel agent --join` becomes an instance of a service."""
        return _show(where, name, "join-token", {}, key="command", as_json=as_json)

    @app.command()
    @connected
    def link(
        *,
        where: Where,
        name: Name,
        seconds: Annotated[int | None, typer.Option(min=1, help="How long it is valid.")] = None,
        as_json: Json = False,
    ) -> int:
        """Print a link to a service's WebUI that needs no login and expires."""
        body = {"seconds": seconds} if seconds is not None else {}
        return _show(where, name, "signed-link", body, key="url", as_json=as_json)

    @app.command()
    @connected
    def invoke(
        *,
        where: Where,
        name: Name,
        path: Annotated[str, typer.Option(help="The path below the service.")] = "/",
        method: Annotated[
            str | None, typer.Option("--method", "-X", help="Default: POST with a body, else GET.")
        ] = None,
        headers: Annotated[
            list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE")
        ] = None,
        data: Annotated[
            str | None, typer.Option("--data", "-d", help="A JSON body; @FILE or @- reads it.")
        ] = None,
        as_json: Json = False,
    ) -> int:
        """Send one request to a service and show the answer (online debugging)."""
        from easel.cli.platform import deploying, doing
        from easel.cli.report import UsageError

        given: dict[str, str] = {}
        for text in headers or []:
            field, colon, value = text.partition(":")
            if not colon:
                raise UsageError(f"--header {text!r} is not NAME: VALUE")
            given[field.strip()] = value.strip()
        body = deploying.example_body(data) if data is not None else None
        return doing.invoke(
            where,
            name,
            method=(method or ("POST" if data is not None else "GET")).upper(),
            path=path,
            headers=given,
            body=body,
            as_json=as_json,
        )

    @app.command()
    @connected
    def models(
        *,
        where: Where,
        name: Name,
        folder: Annotated[str | None, typer.Option(help="Only this folder.")] = None,
        as_json: Json = False,
    ) -> int:
        """List a service's models and which loaders read them."""
        from easel.cli.platform import showing

        return showing.models(where, name, folder=folder, as_json=as_json)

    @app.command()
    @connected
    def nodes(
        *,
        where: Where,
        name: Name,
        search: Annotated[str | None, typer.Option(help="Only names with this text.")] = None,
        as_json: Json = False,
    ) -> int:
        """List the node classes a service knows."""
        from easel.cli.platform import showing

        return showing.nodes(where, name, search=search, as_json=as_json)

    @app.command()
    @connected
    def check(
        *,
        where: Where,
        name: Name,
        workflow: Annotated[Path, typer.Argument(help="Workflow file in API format.")],
        as_json: Json = False,
    ) -> int:
        """Say which nodes and models a workflow needs and misses on a service, before it runs."""
        from easel.cli.platform import deploying, doing

        body = deploying.example_body(f"@{workflow}")
        return doing.check(where, name, workflow=body, as_json=as_json)

    @app.command("load-models")
    @connected
    def load_models(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """See new model files without a restart."""
        return _show(where, name, "load-models", {}, key="message", as_json=as_json)

    @app.command("restart-process")
    @connected
    def restart_process(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """Restart ComfyUI inside the running instances, for new custom nodes."""
        return _show(where, name, "restart-process", {}, key="message", as_json=as_json)


def _show(
    where: Where, name: str, verb: str, body: dict[str, Any], *, key: str, as_json: bool
) -> int:
    from easel.cli.platform import doing
    from easel.cli.platform.control import service_path

    return doing.show(where, "POST", service_path(name, verb), body, key=key, as_json=as_json)
