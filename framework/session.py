"""A board with its guests up: what the main job, the interactive board and the pytest fixtures have in common."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from framework.artifacts.cache import BuildCache
from framework.artifacts.lock import Lock
from framework.artifacts.mirror import Mirrors
from framework.artifacts.stack import Overrides, Stack, prepare
from framework.artifacts.store import Store
from framework.board.board import Board
from framework.board.clone import clone
from framework.board.spec import BoardSpec, GuestSpec
from framework.board.template import Template
from framework.errors import GuestCrash, InfrastructureError, MedcheckError, UsageError
from framework.guests import restored
from framework.guests.dom0 import Dom0
from framework.guests.linux import LinuxGuest, create_linux_guest
from framework.paths import cache_root
from framework.progress import Progress, Silent
from framework.trace.build import PluginOptions, build_plugin, xen_layout

MEDIATOR_TRACE = b"Using TEE mediator for"
"""What a Xen with any TEE mediator carries (xen/arch/arm/tee/tee.c); its console shows it at boot."""


_CLIENT_REFUSED = rb"Unable to create OPTEE client[^\r\n]*"
_BOOT_LINES = 400
"""More lines than Xen prints before dom0."""


@dataclass(frozen=True)
class Phase:
    """One step from power-on to the last guest that is ready; seconds of wall time since power-on."""

    name: str
    end: float


def open_store(offline: bool = False, mirrors: str | None = None, progress: Progress | None = None) -> Store:
    """The download cache of this user; ``mirrors`` (comma separated) wins over environment and apt."""
    found = Mirrors.discover(option=mirrors) if mirrors else None
    return Store(cache_root(), mirrors=found, offline=offline, progress=progress or Silent())


def prepare_stack(overrides: Overrides, store: Store, progress: Progress, *, cpu: str | None = None) -> Stack:
    """The stack in the user's cache, for a board with this ``cpu`` if that is known; refuses a Xen without mediator
    before anything boots."""
    stack = prepare(cache_root(), store, Lock.load(), overrides, progress, cpu=cpu)
    if MEDIATOR_TRACE not in stack.xen.read_bytes():
        raise InfrastructureError(
            "this Xen was built without a TEE mediator",
            where=str(stack.xen),
            hint="build it with CONFIG_EXPERT=y CONFIG_UNSUPPORTED=y CONFIG_TEE=y CONFIG_OPTEE=y",
        )
    return stack


def with_guests(spec: BoardSpec, count: int | None) -> BoardSpec:
    """``spec`` with ``count`` Linux domUs, made like its first one; None leaves it as it is."""
    if count is None or count == len(spec.guests):
        return spec
    if not 1 <= count <= spec.guest_slots:
        raise UsageError(
            f"--domus {count}: board {spec.name} has room for 1 to {spec.guest_slots}",
            hint="dom0 takes one of OP-TEE's CFG_VIRT_GUEST_COUNT partitions, each domU another",
        )
    model = spec.guests[0] if spec.guests else GuestSpec("vm1", "linux", 1, 320, True)
    guests = tuple(replace(model, name=f"vm{number}") for number in range(1, count + 1))
    return replace(spec, guests=guests)


class Session(AbstractContextManager["Session"]):
    """A board that is brought up step by step and always taken down."""

    def __init__(
        self, spec: BoardSpec, stack: Stack, run_dir: Path, *, trace: bool = False, board: Board | None = None
    ) -> None:
        """``trace``: record every SMC into ``run_dir/trace/board.trace``."""
        self.spec = spec
        self.stack = stack
        self.trace = run_dir / "trace" / "board.trace" if trace else None
        self.board = board or _board(spec, stack, run_dir, self.trace)
        self.dom0 = Dom0(self.board, stack.ssh_key, host_key=stack.keys.host_public.read_text())
        self.guests: dict[str, LinuxGuest] = {}
        self.phases: list[Phase] = []
        self.notes: dict[str, Any] = {}
        """What a moment's maker wants its clones to know; plain JSON."""
        self.patience = 30.0
        """Seconds (scaled by the host's speed) without a byte from the firmware or Xen that mean it hangs."""
        self._begin = time.monotonic()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End connections, then the board; may be called twice."""
        for guest in self.guests.values():
            guest.close()
        self.dom0.close()
        self.board.stop()

    @classmethod
    def from_template(
        cls,
        template: Template,
        spec: BoardSpec,
        stack: Stack,
        run_dir: Path,
        *,
        trace: bool = False,
        lockstep: Path | None = None,
        instruction_clock: bool = False,
        wake: bool = True,
    ) -> Session:
        """A private copy of a saved board, running, its guests awake: clocks set, random numbers their own.

        SSH connects at first use. ``trace``: every SMC from the clone's first instruction on.
        ``lockstep``: the socket of a consumer that listens (:class:`framework.trace.live.LiveConsumer`).
        ``instruction_clock``: as in :func:`framework.board.clone.clone`. Without ``wake``, nothing is typed.
        """
        path = run_dir / "trace" / "board.trace" if trace else None
        options = _trace_options(spec, stack, path, lockstep)
        board = clone(template, spec, stack, run_dir, instruction_clock=instruction_clock, **options)
        session = cls(spec, stack, run_dir, board=board)
        session.trace = path
        try:
            session.adopt(template.about, wake=wake)
        except BaseException:
            session.close()
            raise
        return session

    def about(self) -> dict[str, Any]:
        """What :meth:`adopt` needs to take over a restored copy of this board; plain JSON."""
        guests = [
            {"name": guest.name, "number": guest.number, "domid": guest.domid, "tee": guest.tee}
            for guest in self.guests.values()
        ]
        return {"guests": guests, "notes": self.notes}

    def prepare_to_save(self) -> None:
        """Give every guest what it needs to wake up as a clone, and end all connections."""
        asked = " ".join(f"/local/domain/{guest.domid}/console/tty" for guest in self.guests.values())
        ttys = self.dom0.run(f"xenstore-read {asked}").check().text.split() if asked else []
        for guest in self.guests.values():
            restored.prepare(guest.ssh)
            guest.close()
        restored.prepare(self.dom0.ssh, ttys)
        self.dom0.close()

    def adopt(self, about: Mapping[str, Any], *, wake: bool = True) -> None:
        """Take over a restored board whose saver remembered ``about``, and wake its guests.

        Without ``wake`` nothing is typed: the guests of a board that was kept after a failure may be dead.
        """
        self.notes = dict(about["notes"])
        for item in about["guests"]:
            console = self.board.consoles[f"guest{item['number'] - 1}"]
            self.guests[item["name"]] = LinuxGuest(
                self.dom0, item["name"], item["number"], item["domid"], console, tee=item["tee"]
            )
        if wake:
            restored.wake(self.dom0.console, [guest.console for guest in self.guests.values()])
        self.phases.append(Phase("restored", time.monotonic() - self._begin))

    def boot(self, progress: Progress, *, guests: bool = True) -> None:
        """From power-on to every Linux guest of the board ready; without ``guests``, to dom0 ready."""
        linux = [guest for guest in self.spec.guests if guest.kind == "linux" and guests]
        with progress.task("booting", total=2 + 2 * len(linux), unit="steps") as task:
            self._begin = time.monotonic()
            self.board.start()
            self._phase("Xen", lambda: self._wait_for_xen())
            task.advance()
            self._phase("dom0 ready", self.dom0.wait_ready)
            task.advance()
            for number, guest in enumerate(linux, start=1):
                self._phase(f"{guest.name} created", lambda n=number, g=guest: self._create(n, g))  # type: ignore[misc]
                task.advance()
            for guest in linux:
                self._phase(f"{guest.name} ready", self.guests[guest.name].wait_ready)
                task.advance()

    def check_alive(self) -> None:
        """Raise what went wrong on this board, if anything that ends the work did."""
        if not self.board.alive:
            raise self.board.death()

    def _wait_for_xen(self) -> None:
        console = self.board.consoles["xen"]
        try:
            match = console.expect([_CLIENT_REFUSED, rb"\*\*\* LOADING DOMAIN 0 \*\*\*"], idle_timeout=self.patience)
            refused = match.re.pattern == _CLIENT_REFUSED
        except GuestCrash:
            # Xen panics over it a moment later.
            refused = any(re.search(_CLIENT_REFUSED, line.encode()) for line in console.tail(_BOOT_LINES))
            if not refused:
                raise
        if refused:
            raise InfrastructureError(
                "OP-TEE has no room for dom0 as a guest, or knows no guests at all",
                where="console xen",
                hint="build OP-TEE with CFG_NS_VIRTUALIZATION=y and CFG_VIRT_GUEST_COUNT for dom0 and every domU",
            )
        if not any(MEDIATOR_TRACE.decode() in line for line in console.tail(_BOOT_LINES)):
            raise InfrastructureError(
                'Xen found no OP-TEE that it can mediate: no "Using TEE mediator" line before dom0',
                where="console xen",
                hint="build OP-TEE with CFG_NS_VIRTUALIZATION=y; its console says whether it started at all",
            )

    def _create(self, number: int, guest: GuestSpec) -> None:
        self.guests[guest.name] = create_linux_guest(
            self.dom0,
            guest.name,
            number,
            port_name=f"guest{number - 1}",
            console=self.board.consoles[f"guest{number - 1}"],
            memory_mib=guest.memory_mib,
            vcpus=guest.vcpus,
            tee=guest.tee,
            kernel=self.stack.domu_kernel,
            ramdisk=self.stack.domu_ramdisk,
        )

    def _phase(self, name: str, step: Callable[[], object]) -> None:
        try:
            step()
        except MedcheckError:
            self.check_alive()
            raise
        self.phases.append(Phase(name, time.monotonic() - self._begin))


def _board(spec: BoardSpec, stack: Stack, run_dir: Path, trace: Path | None) -> Board:
    return Board(spec, stack, run_dir, **_trace_options(spec, stack, trace))


def _trace_options(
    spec: BoardSpec, stack: Stack, trace: Path | None, lockstep: Path | None = None
) -> dict[str, Any]:
    """What a Board is given to record every SMC into ``trace``, and to have ``lockstep``'s consumer attend."""
    out = None if trace is None else trace.absolute()
    if out is None and lockstep is None:
        return {}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    cache = BuildCache(cache_root())
    layout = None if stack.xen_syms is None else xen_layout(cache, stack.xen_syms)
    options = PluginOptions(out=out, lockstep=lockstep, xen=layout, label=spec.name)
    return options.for_board(build_plugin(cache))
