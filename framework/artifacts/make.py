# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `make` with a known environment and compiler; errors quote the compiler."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from framework.artifacts.firmware_config import FirmwareConfig
from framework.common.errors import BuildError, UsageError
from framework.common.progress import Progress

CROSS = "aarch64-linux-gnu-"
XEN_IDENTITY = {
    "XEN_BUILD_DATE": "reproducible",
    "XEN_BUILD_TIME": "00:00:00",
    "XEN_BUILD_HOST": "medcheck",
    "XEN_WHOAMI": "medcheck",
    "XEN_DOMAIN": "medcheck",
}
"""Variables that Xen prints as the time and host of its build: always the same, so that equal inputs make equal
files."""
MAKE_KEY: Mapping[str, str] = {"LC_ALL": "C", **XEN_IDENTITY}
"""Parts that this module adds to a build; they are in every build's key."""
_COMPLAINT = re.compile(r"^\S[^:\n]*:(?:\d+:)+ (?:fatal )?error: |undefined reference to ")
_FILE = re.compile(r"[\w./-]+\.[chS]:\d")
_MOST_LINES = 12


class CompileError(BuildError):
    """A compiler or linker refused the source: what is wrong stands in the source, not in this machine."""


def run_make(
    title: str,
    folder: Path,
    variables: Mapping[str, object],
    steps: Sequence[Sequence[str]],
    log: Path,
    progress: Progress,
    *,
    environment: Mapping[str, str] | None = None,
    below: str = "",
) -> None:
    """Run make in ``folder`` once for each of ``steps``, a list of its further arguments; ``log`` gets all it prints.
    ``below``: where ``folder`` is in the user's eyes, for errors about files in it (``xen/``).

    :raises CompileError: a compiler found errors; the text has its lines.
    :raises BuildError: anything else failed; the text has the log's end.
    """
    words = [f"{key}={value}" for key, value in variables.items()]
    with progress.task(f"building {title}"):
        for arguments in steps:
            command = ["make", "-s", f"-j{len(os.sched_getaffinity(0))}", *words, *arguments]
            run_logged(title, command, folder, log, environment, below)


def run_logged(
    title: str, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None,
    below: str = "",
) -> None:  # fmt: skip
    """Run one command of a build; see :func:`run_make`."""
    with log.open("ab") as sink:
        begin = sink.tell()
        code = _run_as_a_group(command, folder, {**build_environment(), **(environment or {})}, sink)
    if code == 0:
        return
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
    # The linker, and make itself, name things that are not at a line's beginning.
    complaints = [below + line if _FILE.match(line) else line for line in lines if _COMPLAINT.search(line)]
    shown = (complaints[:_MOST_LINES] if complaints else lines[-_MOST_LINES:]) or ["(it printed nothing)"]
    what = f"building {title} failed ({Path(command[0]).name} exited with {code}):\n    "
    what += "\n    ".join(shown)
    if complaints:
        raise CompileError(what, hint="the compiler refuses these lines; the whole log is kept in the cache's logs")
    raise BuildError(what, hint="`./medcheck doctor` checks the compilers; the log is kept in the cache's logs folder")


def _run_as_a_group(command: Sequence[str], folder: Path, environment: Mapping[str, str], sink: BinaryIO) -> int:
    """Run a command and return its exit code; when this process is told to end, all that it started ends first: a
    compiler that goes on would write into what the next build begins with."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, process_group=0
    ) as process:
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def build_environment() -> dict[str, str]:
    """Return the part of the user's environment that a build sees: other variables (CFLAGS, MAKEFLAGS,
    CROSS_COMPILE, …) would change what is built without changing its key in the cache."""
    kept = {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    return {
        **kept,
        # OP-TEE's scripts run `python3` and need this environment's pyelftools and cryptography.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "SOURCE_DATE_EPOCH": str(FirmwareConfig.load().epoch),
        "LC_ALL": "C",
    }


def cross_compiler(name: str) -> str:
    """The compiler for arm64 that a short name means: ``gcc-11`` is ``aarch64-linux-gnu-gcc-11``."""
    return f"{CROSS}{name}" if re.fullmatch(r"gcc(-\d+)?", name) else name


def compiler_version(compiler: str = f"{CROSS}gcc") -> str:
    """The first line that a compiler prints about itself; part of every build's key.

    :raises BuildError: the pinned compiler does not run. :raises UsageError: another one, which the user named.
    """
    try:
        result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if compiler != f"{CROSS}gcc":
            raise UsageError(f"--cc {compiler}: it does not run: {error}", hint="name a compiler in PATH") from error
        raise BuildError(
            f"the cross compiler {CROSS}gcc does not run: {error}",
            hint="install gcc-aarch64-linux-gnu; `./medcheck doctor` lists all that is needed",
        ) from error
    return result.stdout.splitlines()[0]
