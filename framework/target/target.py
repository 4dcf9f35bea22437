# SPDX-License-Identifier: GPL-2.0-or-later
"""Target: a board with its guests up, as used by the main job, the interactive board and the pytest fixtures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from framework.artifacts.stack import Stack
from framework.board.board import Board
from framework.board.qemu import Ram
from framework.board.spec import BoardSpec, GuestSpec
from framework.common.errors import GuestCrash, InfrastructureError, MedcheckError
from framework.common.progress import Progress
from framework.diagnosis.hang import watch
from framework.guests import restored
from framework.guests.dom0 import Dom0
from framework.guests.linux import LinuxGuest, create_linux_guest
from framework.snapshot.restore import BeforeRun, clone
from framework.snapshot.store import Snapshot
from framework.target.stack import MEDIATOR_TRACE, trace_options
from framework.trace.senses import Sense

_CLIENT_REFUSED = rb"Unable to create OPTEE client[^\r\n]{0,400}"
_DOM0_COMES = rb"\*\*\* LOADING DOMAIN 0 \*\*\*"
_BOOT_LINES = 400
"""Lines to search: more than Xen prints before dom0."""


@dataclass(frozen=True)
class Phase:
    """One step from power-on to the last guest that is ready; seconds of wall time since power-on."""

    name: str
    end: float


_said: set[str] = set()


def say_remarks(board: Board, progress: Progress) -> None:
    """Print the remarks about how a board runs, once in this process."""
    for remark in board.remarks:
        if remark not in _said:
            _said.add(remark)
            progress.say(remark)


class Target(AbstractContextManager["Target"]):
    """A board that is brought up step by step and always taken down."""

    def __init__(
        self,
        spec: BoardSpec,
        stack: Stack,
        run_dir: Path,
        *,
        trace: bool = False,
        board: Board | None = None,
        lockstep: Path | None = None,
        senses: frozenset[Sense] | None = None,
    ) -> None:
        """``trace``: record every SMC into ``run_dir/trace/board.trace``; ``lockstep``: the socket of a consumer that
        gets them as well (:class:`framework.trace.live.LiveConsumer`); ``senses``: what the trace shows beside,
        None for those of the environment.
        """
        self.spec = spec
        self.stack = stack
        self.trace = run_dir / "trace" / "board.trace" if trace else None
        if board is None:
            board = watch(Board(spec, stack, run_dir, **trace_options(spec, stack, self.trace, lockstep, senses)))
        self.board = board
        self._dom0 = Dom0(self.board, stack.ssh_key, host_key=stack.keys.host_public.read_text())
        self.guests: dict[str, LinuxGuest] = {}
        self.phases: list[Phase] = []
        self.notes: dict[str, Any] = {}
        """Notes of a checkpoint's maker for its clones; plain JSON."""
        self.idle_timeout = 30.0
        """Seconds (scaled by the host's speed) without a byte from the firmware or Xen that mean it hangs."""
        self._asleep = False
        self._begin = time.monotonic()
        self._abort: MedcheckError | None = None

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End connections, then the board; may be called twice."""
        for guest in self.guests.values():
            guest.close()
        self._dom0.close()
        self.board.stop()

    @property
    def dom0(self) -> Dom0:
        """The control domain. On a restored board without Linux guests it wakes when it is first asked for."""
        if self._asleep:
            self._asleep = False
            restored.wake(self._dom0.console, [])
        return self._dom0

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Snapshot,
        spec: BoardSpec,
        stack: Stack,
        run_dir: Path,
        *,
        trace: bool = False,
        lockstep: Path | None = None,
        icount: bool = False,
        wake: bool = True,
        ram: Ram | None = None,
        senses: frozenset[Sense] | None = None,
        before_run: BeforeRun | None = None,
    ) -> Target:
        """A private copy of a saved board, running, its guests awake: clocks set, random numbers their own.

        SSH connects at first use. ``trace``: every SMC from the clone's first instruction on.
        ``lockstep``: the socket of a consumer that listens (:class:`framework.trace.live.LiveConsumer`).
        Where the snapshot has a trace of what led to it, the clone's begins with that.
        ``icount``, ``ram``, ``before_run``: as in :func:`framework.snapshot.restore.clone`. Without ``wake``, nothing
        is typed.
        """
        path = run_dir / "trace" / "board.trace" if trace else None
        options = trace_options(spec, stack, path, lockstep, senses, snapshot.history)
        board = clone(snapshot, spec, stack, run_dir, icount=icount, ram=ram, before_run=before_run, **options)
        with ExitStack() as undo:
            undo.callback(board.kill)
            target = undo.enter_context(cls(spec, stack, run_dir, board=board))
            target.trace = path
            target.adopt(snapshot.about, wake=wake)
            undo.pop_all()
        return target

    def about(self) -> dict[str, Any]:
        """Return what :meth:`adopt` needs to take over a restored copy of this board; plain JSON."""
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
        """Take over a restored board whose saver remembered ``about``, and wake its guests; dom0 alone sleeps on until
        it is needed.

        Without ``wake`` nothing is typed: the guests of a postmortem snapshot may be dead.
        """
        self.notes = dict(about["notes"])
        for item in about["guests"]:
            console = self.board.consoles[f"guest{item['number'] - 1}"]
            self.guests[item["name"]] = LinuxGuest(
                self.dom0, item["name"], item["number"], item["domid"], console, tee=item["tee"]
            )
        self._asleep = wake and not self.guests
        if wake and self.guests:
            restored.wake(self.dom0.console, [guest.console for guest in self.guests.values()])
        self.phases.append(Phase("restored", time.monotonic() - self._begin))

    def boot(self, progress: Progress, *, guests: bool = True, wait: bool = True) -> None:
        """Boot from power-on until every Linux guest of the board is ready; without ``guests``, until dom0 is; without
        ``wait``, until all are created (:meth:`wait_ready` waits for one)."""
        linux = [guest for guest in self.spec.guests if guest.kind == "linux" and guests]
        with progress.task("booting", total=2 + (1 + wait) * len(linux), unit="steps") as task:
            self._begin = time.monotonic()
            self.board.start()
            say_remarks(self.board, progress)
            self._phase("Xen", lambda: self._wait_for_xen())
            task.advance()
            self._phase("dom0 ready", self.dom0.wait_ready)
            task.advance()
            for number, guest in enumerate(linux, start=1):
                self._phase(f"{guest.name} created", lambda n=number, g=guest: self._create(n, g))  # type: ignore[misc]
                task.advance()
            for guest in linux if wait else ():
                self.wait_ready(guest.name)
                task.advance()

    def wait_ready(self, name: str) -> None:
        """Wait until a guest that was created is ready; from any thread, once."""
        self._phase(f"{name} ready", self.guests[name].wait_ready)

    def abort(self, error: MedcheckError) -> None:
        """End every wait for this board with ``error``; from any thread."""
        self._abort = error
        self.board.alarm(error)

    def check_alive(self) -> None:
        """Raise the error that ended the work on this board, if any."""
        if self._abort is not None:
            raise self._abort
        if not self.board.alive:
            raise self.board.death()

    def _wait_for_xen(self) -> None:
        console = self.board.consoles["xen"]
        try:
            match = console.expect([_CLIENT_REFUSED, _DOM0_COMES], idle_timeout=self.idle_timeout)
            refused = match.re.pattern == _CLIENT_REFUSED
        except GuestCrash:
            # Xen panics over it shortly afterwards.
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
            other = next((line for line in console.tail(_BOOT_LINES) if "Using TEE mediator for" in line), None)
            raise InfrastructureError(
                f'Xen found no OP-TEE that it can mediate: no "{MEDIATOR_TRACE.decode()}" line before dom0'
                + (f", but: {other}" if other else ""),
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
        except MedcheckError as error:
            # Dead is also the board whose end Xen or dom0 has just given the reason for.
            if not isinstance(error, GuestCrash):
                self.check_alive()
            raise
        self.phases.append(Phase(name, time.monotonic() - self._begin))
