"""`python -m tests.bench.proxy`: the predict proxy against nginx, in one run, as ratios.

All stand before the same upstream (an nginx that answers 175 bytes, or a file of 200 MB) and are asked by the same wrk in
turns. CPU time of the process that does the work is compared, which says more on a shared machine than requests a second.
nginx is there twice: with ``proxy_buffering off`` alone, which the target is about, and told to keep its connections, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil

from tests.bench.__main__ import cpu_seconds
from tests.bench.report import say
from tests.servers import Server, free_port, running

FILE_BYTES = 200 * 1024 * 1024
SMALL = '{"prompt_id":"' + "0" * 36 + '","number":1,"node_errors":{},"padding":"' + "x" * 87 + '"}'
CLIENTS = 32
FILE_CLIENTS = 4

NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {http}
}}
"""
UPSTREAM = """server {{ listen 127.0.0.1:{port}; default_type application/json;
  location = /file {{ alias {file}; }}
  location / {{ return 200 '{small}'; }} }}"""
PROXY = """upstream engine {{ server {upstream}; {more} }}
server {{ listen 127.0.0.1:{port};
  location /api/predict/paint/ {{ proxy_pass http://engine/; proxy_buffering off; proxy_http_version 1.1;
    proxy_set_header Connection ""; }} }}"""


@contextlib.asynccontextmanager
async def nginx(folder: Path, port: int, http: str, ready: str) -> AsyncIterator[Server]:
    """Run an nginx with one worker."""
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, http=http))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [binary, "-e", "stderr", "-p", str(folder), "-c", str(config)]
    url = f"http://127.0.0.1:{port}"
    async with running(url, ready, command, folder / "log") as server:
        yield server


async def serve_gateway(folder: Path, port: int, upstream: str) -> None:
    """Be the gateway: everything as in the platform, requests logged to a file."""
    from easel.gateway.logs import structured_logs
    from tests.gateway.gateways import gateway

    with (folder / "requests.log").open("w") as log, structured_logs(log) as access:
        async with gateway(folder, access=access, port=port) as served:
            served.stands(upstream)
            # As the platform does.
            gc.collect()
            gc.freeze()
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def easel_gateway(folder: Path, upstream: str) -> AsyncIterator[Server]:
    """Run the gateway as a process of its own."""
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.proxy", "--serve", str(folder)]
    command += ["--port", str(port), "--upstream", upstream]
    async with running(f"http://127.0.0.1:{port}", "/healthz", command, folder / "log") as server:
        yield server


async def wrk(url: str, clients: int, seconds: float) -> tuple[int, float]:
    """Ask as much as it takes: requests answered, and bytes a second."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "60"]
    command += ["-H", "Authorization: a-token-of-the-service", url]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = (await process.communicate())[0].decode()
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m), ([\d.]+)(B|KB|MB|GB) read", text)
    assert found, text
    assert "Non-2xx" not in text, text
    took = float(found[2]) * {"ms": 0.001, "s": 1, "m": 60}[found[3]]
    size = float(found[4]) * {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}[found[5]]
    return int(found[1]), size / took


def worker(pid: int) -> psutil.Process:
    """The process that does the work: nginx's one worker, or the gateway itself."""
    process = psutil.Process(pid)
    return next(iter(process.children()), process)


def peak(process: psutil.Process, *, reset: bool = False) -> int:
    """Largest resident size since the last reset."""
    if reset:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


async def bench(folder: Path, rounds: int, seconds: float) -> bool:
    """Measure and print the report. Return whether all targets were reached."""
    folder.chmod(0o755)  # nginx's workers are nobody
    file = folder / "file"
    with file.open("wb") as sink:
        sink.truncate(FILE_BYTES)
    upstream_port, proxy_port, keeping_port = free_port(), free_port(), free_port()
    upstream = UPSTREAM.format(port=upstream_port, file=file, small=SMALL)
    engine = f"127.0.0.1:{upstream_port}"
    plain_proxy = PROXY.format(port=proxy_port, upstream=engine, more="")
    keeping_proxy = PROXY.format(port=keeping_port, upstream=engine, more="keepalive 64;")
    ready = "/api/predict/paint/x"
    async with (
        nginx(folder / "upstream", upstream_port, upstream, "/"),
        nginx(folder / "nginx", proxy_port, plain_proxy, ready) as other,
        nginx(folder / "keeping", keeping_port, keeping_proxy, ready) as keeping,
        easel_gateway(folder / "gateway", f"http://{engine}") as ours,
    ):
        servers = [(one, worker(one.pid)) for one in (ours, other, keeping)]
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {rounds} rounds")
        print(f"{'':<46} {'measured':>22}   target")
        costs: list[list[float]] = [[], [], []]
        rates: list[list[float]] = [[], [], []]
        for server, _ in servers:
            await wrk(server.url + ready, CLIENTS, 1)
        for _ in range(rounds):
            for number, (server, process) in enumerate(servers):
                used = cpu_seconds(process)
                count, _rate = await wrk(server.url + ready, CLIENTS, seconds)
                costs[number].append(1e6 * (cpu_seconds(process) - used) / count)
                rates[number].append(count / seconds)
        cost, least, kept = (statistics.median(one) for one in costs)
        ok = say("small request: gateway CPU", f"{cost:.0f} µs", "<= 450 µs", cost <= 450)
        ratio = cost / least
        ok &= say("  over nginx's", f"{ratio:.1f}x ({least:.0f} µs)", "<= 12x", ratio <= 12)
        print(
            f"{'  over nginx with kept connections':<46} {f'{cost / kept:.1f}x ({kept:.0f} µs)':>22}"
        )
        shown = ", ".join(f"{statistics.median(one):.0f}" for one in rates)
        print(f"{'  requests a second (nginx, keeping)':<46} {shown:>22}")
        speeds: list[list[float]] = [[], []]
        most = grown = 0
        for _ in range(rounds):
            for number, (server, process) in enumerate(servers[:2]):
                held = peak(process, reset=True)
                url = f"{server.url}/api/predict/paint/file"
                speeds[number].append((await wrk(url, FILE_CLIENTS, seconds))[1] / 1e6)
                if number == 0:
                    most = max(most, peak(process))
                    grown = max(grown, peak(process) - held)
        speed, plain = (max(one) for one in speeds)
        ok &= say(
            f"200 MB file, {FILE_CLIENTS} clients: best (nginx)",
            f"{speed:.0f} MB/s ({plain:.0f})",
            ">= 500 MB/s",
            speed >= 500,
        )
        ok &= say(
            "  gateway's memory: peak, grown by",
            f"{most / 1e6:.0f} MB, {grown / 1e6:.0f} MB",
            "<= +40 MB",
            grown <= 40e6,
        )
        async with aiohttp.ClientSession() as http, http.get(f"{ours.url}/metrics") as answer:
            assert "easel_proxied_bytes_total" in await answer.text()
    return ok


def main() -> int:
    """Read the flags, measure, and return 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        import uvloop

        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(serve_gateway(args.serve, args.port, args.upstream))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(bench(Path(folder), args.rounds, args.seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
