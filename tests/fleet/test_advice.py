"""What is advised for the ends that are met, from logs as they look."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from easel.fleet.advice import BY_REASON, CODES, PREPARING, RULES, advise

DIED = "the engine's process ended with exit code 1"

TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/ComfyUI/main.py", line 151, in <module>
    import execution
  File "/opt/ComfyUI/execution.py", line 15, in <module>
"""

LOGS = {
    "the shell tells that the kernel killed it": (
        "EngineFailed",
        DIED,
        'run.sh: line 54: 531285 Killed                  python -u main_run.py "$@"',
        ["machine's memory", "lower the resolution", "metadata.memory"],
    ),
    "no memory for a tensor": (
        "EngineFailed",
        DIED,
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried "
            "to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
        ),
        ["machine's memory"],
    ),
    "python's own": ("EngineFailed", DIED, TRACEBACK + "MemoryError", ["machine's memory"]),
    "cuda": (
        "EngineFailed",
        DIED,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 23.68 GiB",
        ["GPU's memory", "frame rate", "--lowvram"],
    ),
    "a module": (
        "EngineFailed",
        DIED,
        TRACEBACK + "    import cv2\nModuleNotFoundError: No module named 'cv2.gapi'",
        ["cv2.gapi", "prepare.pythonRequirements"],
    ),
    "comfyui's own module": (
        "EngineFailed",
        DIED,
        TRACEBACK + "ModuleNotFoundError: No module named 'torch'",
        ["torch is missing", "requirements.txt"],
    ),
    "a port": (
        "EngineFailed",
        DIED,
        "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8188): address already in use",
        ["port is taken", "{port}"],
    ),
    "another listens": (
        "EngineFailed",
        "the engine's process cannot be started: something else listens at http://127.0.0.1:8188",
        "",
        ["port is taken"],
    ),
    "disk": (
        "Error",
        "its agent ended with exit code 1",
        "OSError: [Errno 28] No space left on device: '/srv/draw/output/x.png'",
        ["disk is full"],
    ),
    "database": ("Error", DIED, "sqlite3.OperationalError: database or disk is full", ["disk"]),
    "permission": (
        "Error",
        DIED,
        "PermissionError: [Errno 13] Permission denied: '/srv/draw/output'",
        ["writable for the user"],
    ),
    "read-only": (
        "Error",
        DIED,
        "OSError: [Errno 30] Read-only file system: '/srv/draw/output/x.png'",
        ["read-only"],
    ),
    "main.py": (
        "EngineFailed",
        "the engine's process ended with exit code 2",
        "/opt/venv/bin/python: can't open file '/opt/ComfyUI/main.py': [Errno 2] No such file or directory",
        ["there is no /opt/ComfyUI/main.py", "easel comfyui"],
    ),
    "torch for the CPU": (
        "EngineFailed",
        DIED,
        "AssertionError: Torch not compiled with CUDA enabled",
        ["built for the CPU", "--cpu"],
    ),
    "old driver": (
        "EngineFailed",
        DIED,
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        ["nvidia-smi", "update the driver"],
    ),
    "no driver": (
        "EngineFailed",
        DIED,
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        ["nvidia-smi", "--cpu"],
    ),
    "custom node": (
        "StartTimeout",
        "not ready within 300 s: its engine did not become ready",
        "Cannot import /srv/draw/custom_nodes/ComfyUI-Foo module for custom nodes: bad things happened",
        ["ComfyUI-Foo", "custom_nodes"],
    ),
    "custom node, in the list of times": (
        "EngineFailed",
        DIED,
        "   0.0 seconds (IMPORT FAILED): /srv/draw/custom_nodes/ComfyUI-Bar",
        ["ComfyUI-Bar", "take it out"],
    ),
    "wheel": (
        "PreparationFailed",
        "preparing the instance failed (exit code 1): pip install /mnt/data/models/whl/x.whl",
        "ERROR: flash_attn-2.7.4-cp312-cp312-win_amd64.whl is not a supported wheel on this platform.",
        ["flash_attn-2.7.4-cp312-cp312-win_amd64.whl", "Python version"],
    ),
    "unknown package": (
        "PreparationFailed",
        "preparing the instance failed (exit code 1)",
        (
            "ERROR: Could not find a version that satisfies the requirement no-such-thing==9 (from versions: none)\n"
            "ERROR: No matching distribution found for no-such-thing==9"
        ),
        ["no-such-thing==9", "models/whl"],
    ),
    "no network": (
        "PreparationFailed",
        "preparing the instance failed (exit code 1)",
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...): [Errno -3] Temporary "
            "failure in name resolution'"
        ),
        ["PIP_INDEX_URL"],
    ),
    "needs a compiler": (
        "PreparationFailed",
        "preparing the instance failed (exit code 1)",
        (
            "error: subprocess-exited-with-error\n  × Building wheel for insightface (pyproject.toml) did not run "
            "successfully.\nerror: command 'g++' failed: No such file or directory"
        ),
        ["compiler"],
    ),
    "no such program": (
        "PreparationFailed",
        "preparing the instance failed (exit code 127): /bin/sh -c …",
        "/bin/sh: 1: aria2c: not found",
        ["aria2c", "not on this machine"],
    ),
    "preparation, nothing known": (
        "PreparationFailed",
        "preparing the instance failed (exit code 3): /bin/sh -c …",
        "",
        ["prepare.pythonRequirements"],
    ),
    "library": (
        "EngineFailed",
        DIED,
        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
        ["libGL.so.1", "opencv-python-headless"],
    ),
    "flag": (
        "EngineFailed",
        "the engine's process ended with exit code 2",
        "main.py: error: unrecognized arguments: --cache-ram 4",
        ["--cache-ram 4", "another installation"],
    ),
    "model": (
        "EngineFailed",
        DIED,
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        ["model file", "LFS"],
    ),
    "engine killed": ("EngineFailed", "the engine's process was ended by SIGKILL", "", ["memory"]),
    "agent killed": ("Killed", "its agent was ended by SIGKILL", "", ["dmesg"]),
    "agent killed after the kernel said so": (
        "Killed",
        "its agent was ended by SIGKILL",
        "Out of memory: Killed process 4711 (python)",
        ["machine's memory was used up"],
    ),
    "limit": ("OOMKilled", "host memory exhausted: 9 MiB in use, 8 MiB allowed", "", ["memory"]),
    "segfault": (
        "EngineFailed",
        "the engine's process was ended by SIGSEGV",
        "",
        ["one by one"],
    ),
    "command": (
        "EngineFailed",
        "the engine's process ended with exit code 127",
        "",
        ["script's paths"],
    ),
    "slow": ("StartTimeout", "not ready within 9 s", "loading", ["startup_check", "start_timeout"]),
    "check": ("LivenessFailed", "GET / answered 500", "", ["liveness_check"]),
}


@pytest.mark.parametrize("case", LOGS)
def test_what_is_advised(case: str) -> None:
    reason, message, log, words = LOGS[case]
    advice = advise(reason, message, log.splitlines())
    assert advice is not None
    for word in words:
        assert word in advice


def test_nothing_is_invented() -> None:
    assert advise("Error", "its agent ended with exit code 1", ["all is well"]) is None
    assert advise("Interrupted", "its start was interrupted", []) is None


def test_what_the_message_says_counts_more_than_the_log() -> None:
    """An error of a task long ago stands in the log of an engine that was killed for its memory now."""
    earlier = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"]
    advice = advise("EngineFailed", "the engine's process was ended by SIGKILL", earlier)
    assert advice == advise("OOMKilled", "", [])


def test_a_running_prompt_cannot_write_the_advice() -> None:
    """What nodes print is data: braces and control characters in it stay what they are."""
    advice = advise(
        "Error", DIED, ["ModuleNotFoundError: No module named 'a.b' {0} {port} \x1b[31m"]
    )
    assert advice is not None
    assert "a.b is missing" in advice
    hostile = "Cannot import /x/{9}\x1b[31m module for custom nodes: x"
    advice = advise("Error", DIED, [hostile])
    assert advice is not None
    assert "\x1b" not in advice


WORDS = [
    *(rule.pattern.pattern for rule in (*RULES, *CODES, *PREPARING)),
    "Cannot import ",
    "ModuleNotFoundError: No module named '",
    "can't open file '",
]
LINES = st.text() | st.builds("".join, st.lists(st.sampled_from(WORDS) | st.text(max_size=5)))


@settings(deadline=None)
@given(st.sampled_from([*BY_REASON, "Error", ""]) | st.text(), LINES, st.lists(LINES, max_size=30))
@example("PreparationFailed", "", ["/bin/sh: {}: not found"])
@example("Error", "x" * 100_000, ["OSError" + " " * 100_000] * 300)
def test_any_text_is_taken(reason: str, message: str, log: list[str]) -> None:
    advice = advise(reason, message, log)
    assert advice is None or advice.isprintable()
