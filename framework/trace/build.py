# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace plugin: compiled here, once, by the host's C compiler; and its arguments."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from framework.common.errors import BuildError, UsageError
from framework.trace.optee_symbols import OpteeLayout
from framework.trace.senses import Sense
from framework.trace.xen_symbols import XenLayout

SOURCES = Path(__file__).resolve().parent / "plugin"
PLUGIN_API = 7
"""Version of QEMU's plugin API the plugin is made for; QEMU refuses to load it when it has another."""

_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden")
_LIBRARIES = ("-lpthread", "-ldl")
_NAME = "medcheck_trace.so"
_LAYOUT = "layout.json"
_READER_FILES = ("dwarf.py", "xen_symbols.py", "xen_code.py", "optee_symbols.py")
_READERS = tuple(sha256((SOURCES.parent / name).read_bytes()).hexdigest() for name in _READER_FILES)
"""What a layout is made by: another reader may find more."""


class Cache(Protocol):
    """The part of :class:`framework.artifacts.cache.BuildCache` that is used here."""

    def get(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The folder that ``build`` fills, from the cache when the inputs are the same."""
        ...


def build_plugin(cache: Cache, *, compiler: str = "cc") -> Path:
    """The plugin's shared object. Raises :class:`BuildError` when the host has no working C compiler."""

    def build(folder: Path) -> None:
        compile_plugin(folder, compiler=compiler)

    return cache.get("trace-plugin", _inputs(compiler), build) / _NAME


def xen_layout(cache: Cache, xen_syms: Path) -> XenLayout:
    """:meth:`XenLayout.load`, which takes seconds, once for each ``xen_syms``."""
    read = _layout(cache, "xen-layout", {"xen_syms": xen_syms}, lambda: XenLayout.load(xen_syms))
    return XenLayout.from_json(read)


def optee_layout(cache: Cache, tee_elf: Path) -> OpteeLayout:
    """:meth:`OpteeLayout.load`, which takes seconds, once for each ``tee_elf``."""
    read = _layout(cache, "optee-layout", {"tee_elf": tee_elf}, lambda: OpteeLayout.load(tee_elf))
    return OpteeLayout.from_json(read)


def _layout(cache: Cache, name: str, inputs: Mapping[str, object], load: Callable[[], XenLayout | OpteeLayout]) -> Any:
    """The JSON of a layout; what ``load`` reads is read once for each content of ``inputs``."""

    def build(folder: Path) -> None:
        (folder / _LAYOUT).write_text(json.dumps(load().to_json()), encoding="ascii")

    path = cache.get(name, {**inputs, "readers": _READERS}, build) / _LAYOUT
    return json.loads(path.read_text(encoding="ascii"))


def compile_plugin(folder: Path, *, compiler: str = "cc") -> Path:
    """Compile the plugin into ``folder``; returns the shared object's path."""
    target = folder / _NAME
    command = [compiler, *_FLAGS, "-o", str(target), *map(str, sorted(SOURCES.glob("*.c"))), *_LIBRARIES]
    run_compiler(command)
    return target


def run_compiler(command: list[str]) -> None:
    """Run a compiler command line; its own words become the error's text."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot run the C compiler {command[0]}: {error.strerror}",
            hint="install gcc or clang, or name another compiler",
        ) from error
    if done.returncode:
        raise BuildError(f"the trace plugin does not compile:\n{done.stderr.strip()}", where=command[0])


def _inputs(compiler: str) -> dict[str, object]:
    found = shutil.which(compiler)
    if found is None:
        raise BuildError(f"this machine has no C compiler {compiler}", hint="install gcc or clang")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    sources = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCES.glob("*.[ch]"))}
    return {"api": PLUGIN_API, "compiler": version, "flags": [*_FLAGS, *_LIBRARIES], "sources": sources}


def coverage_beside(trace: Path) -> Path:
    """The file that the coverage of a trace's board goes to: ``board.coverage`` beside ``board.trace``."""
    return trace.with_suffix(".coverage")


_BY_NAME = (Sense.READS, Sense.TIME, Sense.BOOKS, Sense.FRAMES, Sense.HEAP, Sense.PARTITION)
"""Senses that the plugin has a switch for."""


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """Configuration of the plugin; at least one of ``out`` (a trace file) and ``lockstep`` (a socket) is
    needed.

    ``others``: record calls that are not the TEE's too, instead of only counting them. ``memory``: record
    pages. ``doorbell``: let guests ring with ``hint #0x30``. ``stop_on_error``, ``stop_on_loss``: end the
    board when the file cannot be written, or the lock-step consumer is gone; otherwise go on without.
    ``timeout_s``: how long a vCPU waits for a consumer (0: for ever). ``list_pages``: list pages recorded for
    each memory parameter at most. ``max_mib``: the trace file never grows beyond this many MiB (0: no limit);
    what comes then is lost, counted, and the trace is cut. ``senses``: coverage needs ``xen``, and goes to the file
    beside ``out`` (:func:`coverage_beside`); OP-TEE's list needs ``optee``. ``append``: the file stays, and the run is
    a further segment of it; ``continues``: of the same board, restored from where the segment before it ended.
    """

    out: Path | None = None
    append: bool = False
    continues: bool = False
    lockstep: Path | None = None
    xen: XenLayout | None = None
    optee: OpteeLayout | None = None
    others: bool = False
    memory: bool = True
    doorbell: bool = True
    stop_on_error: bool = True
    stop_on_loss: bool = True
    timeout_s: float = 60.0
    flush_s: float = 0.1
    codec: str = "auto"
    list_pages: int = 40
    max_mib: int = 4096
    label: str = ""
    senses: frozenset[Sense] = frozenset()

    @property
    def coverage(self) -> Path | None:
        """The file that coverage goes to; None when there is none."""
        if Sense.COVERAGE not in self.senses or self.out is None or self.xen is None or not self.xen.code.ranges:
            return None
        return coverage_beside(self.out)

    def arguments(self) -> tuple[str, ...]:
        """The plugin's own ``key=value`` arguments, in the words of ``docs/trace-format.md``."""
        if self.out is None and self.lockstep is None:
            raise UsageError("a trace needs a file to write, a lock-step socket, or both")

        def switch(value: bool) -> str:
            return "on" if value else "off"

        found = []
        if self.out is not None:
            found += [f"out={self.out}", f"append={switch(self.append or self.continues)}"]
            found += ["continues=on"] if self.continues else []
        if self.lockstep is not None:
            found += [
                f"lockstep={self.lockstep}",
                f"timeout_ms={round(self.timeout_s * 1000)}",
                f"on_loss={'stop' if self.stop_on_loss else 'continue'}",
            ]
        found += [
            f"others={'record' if self.others else 'count'}",
            f"memory={switch(self.memory)}",
            f"doorbell={switch(self.doorbell)}",
            f"on_error={'stop' if self.stop_on_error else 'continue'}",
            f"flush_ms={round(self.flush_s * 1000)}",
            f"codec={self.codec}",
            f"list_pages={self.list_pages}",
            f"max_mib={self.max_mib}",
        ]
        if self.label:
            found.append(f"label={self.label}")
        found += [f"{sense}=on" for sense in _BY_NAME if sense in self.senses]
        if self.xen is not None:
            found += self.xen.arguments()
            if self.coverage is not None or self.lockstep is not None:
                found += [f"cover={start:#x}-{end:#x}" for start, end in self.xen.code.ranges]
            if self.coverage is not None:
                found.append(f"coverage={self.coverage}")
        if self.optee is not None:
            found += self.optee.arguments()
        return tuple(found)

    def for_board(self, plugin: Path) -> dict[str, Any]:
        """Return the options of a :class:`framework.board.board.Board` that loads the plugin with these options.

        Its outputs: the files, and the socket as well, for QEMU may run as another user, who could not connect to it.
        """
        outputs = [path for path in (self.out, self.lockstep, self.coverage) if path is not None]
        return {"plugin": plugin, "plugin_args": self.arguments(), "outputs": outputs}

    def qemu(self, plugin: Path) -> tuple[str, str]:
        """QEMU's ``-plugin`` option; commas are doubled, as QEMU wants them."""
        return "-plugin", ",".join(part.replace(",", ",,") for part in (str(plugin), *self.arguments()))
