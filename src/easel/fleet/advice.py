"""What to do about an instance that ended: from the reason, the message and the last log lines to one sentence for people.

The remedies are those of the vendor's page for ComfyUI services (eas-and-fc.md A.6), and what else is met on one's own
machines, in the words of this platform. Pure: nothing is looked at but the text, and any text is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

MOST_LINES = 50
LONGEST_LINE = 500
"""How much of a log is looked at: patterns are tried on every line."""

MEMORY = (
    "the machine's memory was used up: lower the resolution, the batch or the number of frames, use a smaller or "
    "quantised model, or give the service more memory (metadata.memory, `easel update NAME --memory`)"
)
GPU_MEMORY = (
    "the GPU's memory was used up: lower the resolution or the batch, for video the frame rate or the number of frames; "
    "or start ComfyUI with --lowvram, or take a GPU with more memory"
)
DRIVER = (
    "its PyTorch and this machine's GPU driver do not go together: `nvidia-smi` shows the driver's CUDA version; install "
    "a torch that is built for it into the installation's Python, or update the driver"
)
DISK = (
    "the disk is full: empty the data directory's output, input and temp folders, or set how long ended tasks are kept; "
    "then `easel start`"
)
PERMISSION = "make the file readable and its folder writable for the user that runs the platform"
PORT = "its port is taken by another program: write {{port}} for it in the command, or stop the other program"
MODEL_FILE = (
    "a model file is damaged or incomplete (an interrupted upload, or a Git LFS pointer instead of the file): put it "
    "into the data directory's models folder again"
)


class Rule(NamedTuple):
    """Words that are met in a log or a message, and what to do when they are."""

    pattern: re.Pattern[str]
    advice: str
    """May hold ``{0}``, ``{1}``: the pattern's groups."""


def _rule(pattern: str, advice: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), advice)


PREPARING = (
    _rule(
        r"ERROR: (\S{1,200}) is not a supported wheel on this platform",
        "the wheel {0} was built for another Python version, system or processor: take the one whose name fits the "
        "installation's Python (`easel doctor` shows it), or name the package instead of the file",
    ),
    _rule(
        r"Could not find a version that satisfies the requirement ([^\s(;]{1,100})",
        "no version of {0} fits the installation's Python, or there is no such package: check its name and version in "
        "prepare.pythonRequirements; without a network, put its wheel into the data directory's models/whl folder and "
        "write `pip install /mnt/data/models/whl/….whl` before main.py",
    ),
    _rule(
        r"ResolutionImpossible|have conflicting dependencies|dependency conflict",
        "the packages of prepare.pythonRequirements want different versions of the same package: loosen or leave out a "
        "version",
    ),
    _rule(
        r"requires a different Python",
        "the package needs another Python version than the installation's: choose an older or newer version of it",
    ),
    _rule(
        r"Failed (?:building|to build) (?:a )?(?:wheels? for |installable wheels)|subprocess-exited-with-error"
        r"|command '?(?:\S*/)?(?:gcc|g\+\+|cc|nvcc)'? failed",
        "a package had to be compiled here and was not: install its compiler and headers on this machine, or name a "
        "version of which there is a wheel",
    ),
    _rule(
        r"Temporary failure in name resolution|Name or service not known|NewConnectionError|Network is unreachable"
        r"|Could not resolve host|Connection timed out|ReadTimeoutError|ProxyError",
        "this machine could not reach the package's server: check its network and proxy, set PIP_INDEX_URL in env to a "
        "mirror, or install wheels from the data directory's models/whl folder",
    ),
    _rule(
        r"externally-managed-environment",
        "the installation's Python is the system's own, which pip leaves alone: register ComfyUI with a virtual "
        "environment of its own",
    ),
    _rule(
        r"(?:^|: )([\w.+-]{1,100}): (?:command )?not found",
        "the program {0} is not on this machine: install it, or take the line that calls it out of the script",
    ),
    _rule(
        r"Could not open requirements file|requirements file (\S{1,300}) cannot be read",
        "prepare.pythonRequirementsPath must name a file in the service's storage, by its mount path",
    ),
    _rule(
        r"Invalid requirement|Expected (?:end|package name)",
        "a line of prepare.pythonRequirements is no requirement: one package each, such as `opencv-python==4.10.0.84`",
    ),
)
"""Met while an instance is prepared."""

OUT_OF_MEMORY = _rule(
    r": line \d+: +\d+ Killed\b|^Killed$|\bout of memory: killed process|\boom-kill|^(?:\w+\.)?MemoryError\b"
    r"|std::bad_alloc|cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough)|host memory exhausted"
    r"|killed for want of memory",
    MEMORY,
)

RULES = (
    _rule(
        r"(?:CUDA|HIP|GPU) out of memory|OutOfMemoryError|(?:CUDA|HIP) error: out of memory"
        r"|cudaMalloc failed: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        GPU_MEMORY,
    ),
    OUT_OF_MEMORY,
    _rule(
        r"Torch not compiled with CUDA enabled",
        "its torch is built for the CPU alone: install a torch with CUDA into the installation's Python, or start "
        "ComfyUI with --cpu",
    ),
    _rule(
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient"
        r"|no kernel image is available for execution|forward compatibility was attempted",
        DRIVER,
    ),
    _rule(
        r"Found no NVIDIA driver|no CUDA-capable device|CUDA unknown error|No CUDA GPUs are available"
        r"|libcuda\.so\.1: cannot open",
        "its torch finds no GPU: `nvidia-smi` must work for the user that runs the platform; without a GPU start "
        "ComfyUI with --cpu",
    ),
    _rule(
        r"CUDA error: (?:an illegal memory access|unspecified launch failure|device-side assert|uncorrectable ECC)"
        r"|GPU (?:is lost|has fallen off the bus)|Unable to determine the device handle for GPU",
        "the GPU failed: `nvidia-smi` and `dmesg` show whether it is sick; if it comes again with one workflow only, "
        "look at that workflow's custom nodes",
    ),
    _rule(r"No space left on device|Disk quota exceeded|database or disk is full", DISK),
    _rule(
        r"Read-only file system",
        "the storage is mounted read-only, and an instance must write its outputs: choose another folder as data directory",
    ),
    _rule(
        r"can't open file '([^']{1,500})'.{0,40}No such file",
        "there is no {0}: `easel comfyui list` shows the installations; the script's main.py must be the engine's, or a "
        "full path",
    ),
    _rule(
        r"(?:\[Errno (?:98|48)\]|OSError).{0,200}address already in use|address already in use"
        r"|something else listens at",
        PORT,
    ),
    _rule(
        r"ModuleNotFoundError: No module named '(torch|torchvision|torchaudio|comfy|comfyui_frontend_package|aiohttp"
        r"|safetensors|transformers|alembic|sqlalchemy|av)\b",
        "the installation is incomplete, {0} is missing: install ComfyUI's own requirements.txt into its Python",
    ),
    _rule(
        r"ModuleNotFoundError: No module named '([\w.]{1,200})",
        "the Python package that provides {0} is missing: add it to prepare.pythonRequirements, then `easel update` "
        "(its name on the index may be another than the module's)",
    ),
    _rule(
        r"ImportError: (lib[\w.+-]{1,100}): cannot open shared object file",
        "the system library {0} is missing on this machine: install it with the system's package manager (libGL comes "
        "with opencv-python; opencv-python-headless does without)",
    ),
    _rule(
        r"version `?(GLIBC\w*_[\d.]{1,20})'? not found",
        "a package was built for a newer system ({0}): take an older version of it",
    ),
    _rule(
        r"(?:ImportError|AttributeError): cannot import name '?([\w.]{1,100})"
        r"|module 'numpy' has no attribute|compiled using NumPy 1",
        "packages of its Python do not go together: pin the version that the custom node or ComfyUI asks for in "
        "prepare.pythonRequirements",
    ),
    _rule(
        r"error: unrecognized arguments: (.{1,200})",
        "this version of the engine does not know {0}: take it out of the script, or choose another installation",
    ),
    _rule(
        r"MetadataIncompleteBuffer|HeaderTooLarge|InvalidHeaderDeserialization|invalid load key"
        r"|PytorchStreamReader failed|unexpected EOF, expected",
        MODEL_FILE,
    ),
    _rule(r"Permission ?denied|Operation not permitted", PERMISSION),
    _rule(
        r"Too many open files",
        "it ran out of file handles: raise the limit for the platform's user (`ulimit -n`)",
    ),
    _rule(
        r"unable to open shared memory|insufficient shared memory|\bBus error\b",
        "shared memory is used up: free space in /dev/shm, or give the service an empty_dir of medium memory there",
    ),
    _rule(
        r"Cannot import (\S{1,300}) module for custom nodes|\(IMPORT FAILED\): +(\S{1,300})",
        "the custom node {0} cannot be imported: install what its requirements.txt names (prepare.pythonRequirementsPath), "
        "or take it out of custom_nodes; then restart",
    ),
)
"""Met in any end, the surest first."""

CODES = (
    _rule(
        r"SIGSEGV|Segmentation fault|signal 11\b",
        "native code crashed: look at the custom nodes and packages that were added last, and take them out one by one",
    ),
    _rule(
        r"SIGILL|Illegal instruction",
        "a package was built for a newer processor than this machine's: install another build of it",
    ),
    _rule(
        r"ended with exit code 127\b|is the engine's command right|No such file or directory: '([^']{1,300})'",
        "the command's program or a file of it is not on this machine: check the script's paths; mount paths are "
        "translated, other paths are the machine's",
    ),
)
"""How a process ended, in the message: looked at when the log says nothing."""

SIGKILL = re.compile(r"\bSIGKILL\b|\bsignal 9\b")
KILLED = (
    "somebody or the system killed it: the kernel does so when the machine's memory is used up (`dmesg` says so); then "
    "lower the resolution, or give the service a memory limit, so that it is ended before the machine suffers"
)
BY_REASON = {
    "OOMKilled": MEMORY,
    "DiskFull": DISK,
    "PermissionDenied": PERMISSION,
    "ReadOnly": "choose a folder that can be written as data directory",
    "StartTimeout": (
        "look at its log for what it waits for; if it is only slow (large models, many custom nodes), give it more time: "
        "startup_check.failure_threshold of the service, or the platform's fleet.start_timeout"
    ),
    "LivenessFailed": (
        "its liveness_check fails although it runs: check the path and port it asks, or allow more (timeout_seconds, "
        "failure_threshold); an engine that is busy answers slowly"
    ),
    "Unresponsive": "its engine or its agent hung; if it comes again, look at the workflow it ran and at the machine's load",
    "Killed": "somebody or the system ended it, it did not fail by itself",
    "PreparationFailed": "look at prepare.pythonRequirements and at the lines before main.py in the script",
    "EngineFailed": "it never became ready: its log says why; the script's own flags are passed on to it as they are",
    "Completed": "an engine must go on running: does its command end by itself, or return to the shell?",
}
"""Where the words say nothing."""


def advise(reason: str, message: str, log: Sequence[str]) -> str | None:
    """Return what to do about an end, None when nothing better than the message is known.

    ``reason`` is the word of `Vitals.exit`, `InstanceFailed.reason` or `Ending.reason`; ``log`` the last lines printed.
    """
    if reason == "OOMKilled":
        return MEMORY
    said = [message[:LONGEST_LINE]]
    lines = [line[:LONGEST_LINE] for line in list(log)[-MOST_LINES:]]
    lines.reverse()  # what was printed last is nearest to the end
    if reason == "PreparationFailed" and (found := _first(PREPARING, said + lines)):
        return found
    if found := _first(RULES, said):
        return found
    if SIGKILL.search(message):
        return MEMORY if reason == "EngineFailed" or _first((OUT_OF_MEMORY,), lines) else KILLED
    return _first(RULES, lines) or _first(CODES, said) or BY_REASON.get(reason)


def _first(rules: Sequence[Rule], lines: Sequence[str]) -> str | None:
    """Return the advice of the first rule that any line fits."""
    for rule in rules:
        for line in lines:
            if found := rule.pattern.search(line):
                groups = [_named(one) for one in found.groups() if one is not None]
                return rule.advice.format(*groups)
    return None


def _named(word: str) -> str:
    """A name out of a log, as it may stand in a sentence."""
    return "".join(one for one in word if one.isprintable()).strip(" '\"")
