"""`easel demo`: a platform, a service and an example workflow, in one command."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from easel.cli.processes import choose_port, platform
from easel.errors import ConfigurationError

SERVICE = "demo"
WORKFLOW = "photo-glow.json"
PHOTO = "coffee.jpg"
PRETENDED = "v1-5-pruned-emaonly-fp16.safetensors"
"""An empty file under the name that the front end's first workflow asks for; the pretend pack reads no model."""


def examples() -> Path:
    """Return the folder of examples: of the source tree, or of the installed package.

    Raises ConfigurationError when neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "examples", package / "examples"):
        if (folder / WORKFLOW).is_file():
            return folder
    raise ConfigurationError(
        "the examples are not installed", hint="run from a checkout of the repository"
    )


def demo(*, once: bool, host: str, port: int, data_dir: Path, output: Path) -> int:
    """Start a platform, deploy a service, run the example on it, and print where the picture and the WebUI are.

    Unless `once`, stay up until Ctrl-C. Return the exit code.
    """
    folder = examples()
    port = choose_port(host, port)
    url, home, storage = f"http://{host}:{port}", data_dir / "platform", data_dir / "storage"
    print("starting a platform (built-in engine: no ComfyUI, no GPU) ...", flush=True)
    checkpoint = storage / "models" / "checkpoints" / PRETENDED
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    on = ["--gateway", url, "--home", str(home)]
    with platform(url, port, home) as process:
        example = [str(folder / WORKFLOW), "--input", str(folder / PHOTO), "--output", str(output)]
        for command in (
            _deployment(url, home, storage),
            ["run", *example, "--service", SERVICE, *on],
        ):
            code = easel(*command)
            if code != 0:
                return code
        print(f"\nResult: in {output.resolve()}", flush=True)
        easel("describe", SERVICE, *on)
        print("\nWebUI:  ", end="", flush=True)
        easel("link", SERVICE, *on)
        print(f"API:    easel endpoint {SERVICE} --home {home}")
        if once:
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            print("Text-to-image is pretended here: no model runs. Ctrl-C ends.", flush=True)
            code = process.wait()
            print(f"the platform ended by itself (exit code {code})", file=sys.stderr)
            return code or 1
    return 0


def _deployment(url: str, home: Path, storage: Path) -> list[str]:
    """Return the command that deploys the demo's service, or brings back the one of an earlier demo."""
    flags = ["--edition", "standard", "--engine", "builtin", "--pack", "demo", "--pack", "pretend"]
    known = subprocess.run(
        command_line("describe", SERVICE, "--gateway", url, "--home", str(home)),
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    verb = "update" if known.returncode == 0 else "deploy"
    where = ["--gateway", url, "--home", str(home)]
    return [verb, SERVICE, *flags, "--storage", str(storage), *where]


def command_line(*arguments: str) -> list[str]:
    """Return the command line of an `easel` command."""
    return [sys.executable, "-m", "easel", *arguments]


def easel(*arguments: str) -> int:
    """Run an `easel` command and return its exit code."""
    return subprocess.run(command_line(*arguments), check=False).returncode
