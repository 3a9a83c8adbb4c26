"""The commands and their flags. What they do is imported when they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from easel import __version__
from easel.cli.comfyui import comfyui
from easel.cli.platform.commands import add_commands
from easel.cli.platform.operations import add_operations
from easel.cli.report import FAILED, INTERRUPTED, UsageError, report
from easel.errors import EaselError

app = typer.Typer(
    name="easel",
    help="Easel turns ComfyUI into a service.",
    rich_markup_mode=None,  # rich is slow to import; it is used for progress bars only
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer brings its own copy of click or uses the installed one, by version: reached by way of what it exports.
_CallError: type[Exception] = typer.BadParameter.__mro__[1]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _easel(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    *,
    workflow: Annotated[
        str, typer.Argument(help="Workflow file in API format; - reads standard input.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="Set an input. NODE is a node's id, or its title or class where only one has it.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NODE.INPUT=]FILE",
            help="Give a file (or URL) to a file input; to the only one when no NODE.INPUT is named.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the outputs.")
    ] = Path("outputs"),
    url: Annotated[
        str | None,
        typer.Option(
            help="The agent's URL. Default: EASEL_URL, else port 9000 of this machine, else a private agent.",
        ),
    ] = None,
    as_json: Json = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.001, help="Cancel the task after this time."),
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The task's id; the same id with the same call joins it."),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run on this service of a platform, as a task."),
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --service: the gateway. Default: EASEL_GATEWAY."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="With --service: the admin token. Default: EASEL_TOKEN.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="With --service: the platform's folder. Default: EASEL_HOME."),
    ] = None,
) -> int:
    """Run a workflow, show its progress, save its outputs."""
    from easel.cli.run import RunOptions, Service
    from easel.cli.run import run as run_workflow

    if service is not None and url is not None:
        raise UsageError("--url names an agent, --service a service: give one of them")
    on = Service(name=service, gateway=gateway, token=token, home=home) if service else None

    return run_workflow(
        RunOptions(
            workflow=workflow,
            sets=sets or [],
            inputs=inputs or [],
            output=output,
            url=url,
            as_json=as_json,
            timeout=timeout,
            task_id=task_id,
            service=on,
        )
    )


@app.command()
def agent(
    *,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND ...]",
            help="The engine's command line, such as: python main.py --listen --port 8000",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port (9000); 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    engine: Annotated[
        str | None, typer.Option(help="builtin: start and watch the built-in engine.")
    ] = None,
    comfyui: Annotated[
        str | None, typer.Option(metavar="URL", help="Use a ComfyUI that runs already.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where outputs and tasks are kept (easel-data/agent).")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Progress store: files, or a database URL.")
    ] = None,
    packs: Annotated[
        list[str] | None,
        typer.Option("--pack", help="Further node pack of the built-in engine: demo, pretend …"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The engine's device (CUDA_VISIBLE_DEVICES).")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Become an instance of this gateway's platform."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="With --join: the service's join token.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="With --join: a file that holds the token.")
    ] = None,
    storage: Annotated[
        Path | None,
        typer.Option(help="With --join: the service's data directory, if this machine has it."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="A name for people; the host's name by default.")
    ] = None,
    engine_reachable: Annotated[
        bool | None,
        typer.Option(
            "--engine-reachable/--engine-hidden",
            help="With --join: whether the gateway reaches the engine by its URL. Default: if it is this machine.",
        ),
    ] = None,
    instance: Annotated[str | None, typer.Option(hidden=True)] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> int:
    """Serve the agent in front of one engine: runs tasks, watches the engine, passes the rest through."""
    from easel.cli import servers

    return servers.agent(
        engine=engine,
        comfyui=comfyui,
        command=command or (),
        packs=tuple(packs or ()),
        with_parent=with_parent,
        port=port,
        host=host,
        data_dir=data_dir,
        store=store,
        device=device,
        join=join,
        token=token,
        token_file=token_file,
        storage=storage,
        name=name,
        engine_reachable=engine_reachable,
        instance=instance,
    )


@app.command()
def engine(
    *,
    port: Annotated[int | None, typer.Option(help="Port (8188); 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of input, output, temp, user and models.")
    ] = None,
    packs: Annotated[
        list[str] | None,
        typer.Option("--pack", help="Further node pack: demo, pretend, or module:registry."),
    ] = None,
    previews: Annotated[
        bool | None, typer.Option("--previews", help="Send previews of the steps.")
    ] = None,
    multi_user: Annotated[
        bool | None, typer.Option("--multi-user", help="Split settings and userdata by user.")
    ] = None,
    cors_origin: Annotated[
        str | None, typer.Option(help="Allow pages of this origin (* allows all).")
    ] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> int:
    """Serve the built-in engine: ComfyUI's API without ComfyUI, torch or a GPU."""
    from easel.cli import servers

    return servers.engine(
        port=port,
        host=host,
        data_dir=data_dir,
        packs=tuple(packs or ()),
        previews=previews,
        multi_user=multi_user,
        cors_origin=cors_origin,
        with_parent=with_parent,
    )


@app.command()
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End after the example.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port, if it is free.")] = 9000,
    data_dir: Annotated[Path, typer.Option(help="Where agent and engine keep their data.")] = Path(
        "easel-data/demo"
    ),
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the outputs.")
    ] = Path("outputs"),
) -> int:
    """Start agent and built-in engine, run an example on a photograph, stay up until Ctrl-C."""
    from easel.cli.demo import demo as run_demo

    return run_demo(once=once, host=host, port=port, data_dir=data_dir, output=output)


@app.command()
def doctor(
    *,
    as_json: Json = False,
    comfyui: Annotated[
        Path | None, typer.Option(help="ComfyUI's folder. Default: COMFYUI_PATH, else a guess.")
    ] = None,
    python: Annotated[Path | None, typer.Option(help="The Python that runs ComfyUI.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The data directory to look at.")] = None,
    store: Annotated[
        str | None, typer.Option(help="The progress store to look at (files, or a database URL).")
    ] = None,
) -> int:
    """Say what this machine has and lacks, and what to do about it."""
    from easel.cli import doctor as doctors

    request = doctors.Request(comfyui=comfyui, python=python, data_dir=data_dir, store=store)
    return doctors.doctor(request, as_json=as_json)


add_commands(app)
add_operations(app)
app.add_typer(comfyui, name="comfyui")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"easel {__version__}")


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; every error is a line on stderr (or JSON), never a traceback.

    EASEL_DEBUG=1 lets exceptions through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return _call(arguments)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`easel doctor | head`): nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("EASEL_DEBUG") == "1":
            raise
        return report(_as_easel_error(error), as_json="--json" in arguments)


def _call(arguments: list[str]) -> int:
    code = app(arguments, prog_name="easel", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _as_easel_error(error: Exception) -> EaselError:
    if isinstance(error, EaselError):
        return error
    if isinstance(error, _CallError):
        message = getattr(error, "format_message", lambda: str(error))()
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "easel"
        return UsageError(message.rstrip("."), hint=f"`{command} --help` lists what there is")
    return EaselError(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a bug in Easel; EASEL_DEBUG=1 shows where",
    )
