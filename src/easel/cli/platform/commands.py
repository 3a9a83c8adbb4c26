"""The platform's commands and their flags. What they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easel.cli.platform.options import Home, Json, Name, Wait, connected

if TYPE_CHECKING:
    from easel.cli.platform.where import Where

File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", metavar="JSON", help="An EAS service JSON; - reads standard input."
    ),
]
Edition = Annotated[
    str | None, typer.Option(help="standard (one instance, WebUI, synchronous API) or api.")
]
Storage = Annotated[
    Path | None,
    typer.Option(help="The data directory: models, custom_nodes, input, output … Made if missing."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="comfyui (the installation in use), comfyui:NAME, comfyui:FOLDER, or builtin."
    ),
]
Instances = Annotated[int | None, typer.Option(min=0, help="How many instances.")]
Packs = Annotated[
    list[str] | None, typer.Option("--pack", help="Further node pack of the built-in engine.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="Environment of the instances."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most memory of an instance, such as 16G.")
]
WebPort = Annotated[
    int | None, typer.Option(help="A port of its own, where the WebUI is at the root path.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def up(
        *,
        home: Home = None,
        host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
        port: Annotated[int | None, typer.Option(help="Port (8500); 0 takes a free one.")] = None,
        database: Annotated[
            str | None, typer.Option(help="URL of the state; default: easel.db in the home.")
        ] = None,
        keep_instances: Annotated[
            bool,
            typer.Option(
                "--keep-instances",
                help="At the end leave instances running, for the next start to adopt (as after a crash).",
            ),
        ] = False,
        with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
    ) -> int:
        """Serve the platform: gateway, controller, and instances as processes of their own."""
        from easel.cli.platform.up import up as serve

        return serve(
            home=home,
            host=host,
            port=port,
            database=database,
            keep_instances=keep_instances,
            with_parent=with_parent,
        )

    def put(verb: str, words: str) -> None:
        @app.command(verb, help=words)
        @connected
        def command(
            *,
            where: Where,
            name: Annotated[str | None, typer.Argument(metavar="[SERVICE]")] = None,
            file: File = None,
            edition: Edition = None,
            storage: Storage = None,
            engine: Engine = None,
            instances: Instances = None,
            packs: Packs = None,
            env: Env = None,
            memory: Memory = None,
            web_port: WebPort = None,
            wait: Wait = True,
            as_json: Json = False,
        ) -> int:
            from easel.cli.platform import deploying

            act = deploying.deploy if verb == "deploy" else deploying.update
            deployment = deploying.Deployment(
                name=name,
                file=file,
                edition=edition,
                storage=storage,
                engine=engine,
                instances=instances,
                packs=packs or [],
                env=env or [],
                memory=memory,
                web_port=web_port,
                wait=wait,
                as_json=as_json,
            )
            return act(where, deployment)

    put("deploy", "Deploy a service: by flags, or an EAS service JSON with --file.")
    put(
        "update",
        "Change a service: the flags that are given, or a whole EAS JSON. "
        "The new revision is ready before the old one leaves.",
    )

    @app.command()
    @connected
    def services(
        *,
        where: Where,
        as_json: Json = False,
    ) -> int:
        """List the services."""
        from easel.cli.platform import showing

        return showing.services(where, as_json=as_json)

    @app.command()
    @connected
    def describe(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """Show a service: status with reason, revisions, instances, warnings."""
        from easel.cli.platform import showing

        return showing.describe(where, name, as_json=as_json)

    @app.command()
    @connected
    def instances(
        *,
        where: Where,
        name: Name,
        as_json: Json = False,
    ) -> int:
        """List a service's instances."""
        from easel.cli.platform import showing

        return showing.instances(where, name, as_json=as_json)

    @app.command()
    @connected
    def events(
        *,
        where: Where,
        name: Name,
        limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
        as_json: Json = False,
    ) -> int:
        """Show what happened to a service, with reasons, advice and log lines."""
        from easel.cli.platform import showing

        return showing.events(where, name, limit=limit, as_json=as_json)

    @app.command()
    @connected
    def logs(
        *,
        where: Where,
        name: Name,
        instance: Annotated[str | None, typer.Option(help="Only this instance.")] = None,
        lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000)] = 100,
        previous: Annotated[
            bool, typer.Option("--previous", help="Of the run before the last restart.")
        ] = False,
        keyword: Annotated[str | None, typer.Option(help="Only lines with this text.")] = None,
        follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
        as_json: Json = False,
    ) -> int:
        """Show what a service's instances printed last."""
        from easel.cli.platform import showing

        return showing.logs(
            where,
            name,
            instance=instance,
            lines=lines,
            previous=previous,
            keyword=keyword,
            follow=follow,
            as_json=as_json,
        )

    @app.command()
    @connected
    def tasks(
        *,
        where: Where,
        name: Name,
        state: Annotated[list[str] | None, typer.Option(help="Only in this state.")] = None,
        rear: Annotated[bool, typer.Option("--rear", help="Only the rear queue.")] = False,
        limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
        as_json: Json = False,
    ) -> int:
        """List a service's tasks, newest first."""
        from easel.cli.platform import showing

        return showing.tasks(
            where,
            name,
            state=state or [],
            rear=rear,
            limit=limit,
            as_json=as_json,
        )

    @app.command()
    @connected
    def forward(
        *,
        where: Where,
        name: Name,
        port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8188,
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    ) -> int:
        """Serve a service at a port of this machine without a token, for ComfyUI's own clients and plug-ins."""
        from easel.cli.platform.forwarding import forward as serve

        return serve(where, name, host=host, port=port)
