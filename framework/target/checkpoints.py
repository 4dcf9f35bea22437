"""Moments of a board's life that are worth a template, and clones of them.

A moment is a name and a plain function that takes a booted session there. Whatever goes into a template goes
into its key: the files of the stack, the board, QEMU's command line, the moment's own source, and the sources of
what boots a board. So a template is made at first use, made again when anything in it changes, and never stale.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts.cache import BuildCache
from framework.artifacts.stack import Stack
from framework.board import qemu
from framework.board.board import Board
from framework.board.qemu import Ram
from framework.board.spec import BoardSpec
from framework.common.errors import UsageError
from framework.common.paths import PACKAGE, cache_root
from framework.common.progress import Progress, Silent
from framework.diagnosis.hang import watch
from framework.guests.restored import LostTimerError
from framework.probe import parked
from framework.probe.build import build_probe
from framework.snapshot.save import wait_until_calm
from framework.snapshot.store import Template, TemplateStore
from framework.target.target import Session

_SOURCES = ("target/target.py", "target/checkpoints.py", "board/devicetree.py", "guests/*.py", "snapshot/*.py")
"""What decides, beside files and options, which state a board is saved in."""


@dataclass(frozen=True)
class Moment:
    """When to save. ``further`` goes on from a board with all its guests ready (``guests``) or with dom0 only;
    it may leave JSON in :attr:`Session.notes <framework.target.target.Session>` for the clones. It must be a plain
    function: its source is part of the template's key, and so is the content of the ``files`` that it uses."""

    name: str
    guests: bool = True
    further: Callable[[Session], None] | None = None
    files: Callable[[], Sequence[Path]] | None = None

    @property
    def source(self) -> str:
        """The text of what it does."""
        return "" if self.further is None else inspect.getsource(self.further)


READY = Moment("ready")
"""All Linux guests up, each initialised in OP-TEE."""

DOM0 = Moment("dom0", guests=False)
"""dom0 up, no guest yet."""


def _park(session: Session) -> None:
    """A probe on the first guest port; a standard call of it waits in OP-TEE."""
    port = "guest0"
    console = session.board.consoles[port]
    session.notes["parked"] = parked.park(session.dom0, port, console, build_probe(BuildCache(cache_root())))


def _park_files() -> Sequence[Path]:
    return [build_probe(BuildCache(cache_root())), *parked.SOURCES]


PARKED = Moment("parked", guests=False, further=_park, files=_park_files)
"""dom0 up, and a probe guest whose standard call is suspended in OP-TEE at an RPC: see :func:`take_over_parked`."""

MOMENTS = {moment.name: moment for moment in (READY, DOM0, PARKED)}


def named(moment: Moment | str) -> Moment:
    """The moment of this name; a moment is itself. Raises UsageError for a name that none has."""
    if isinstance(moment, Moment):
        return moment
    if moment not in MOMENTS:
        raise UsageError(f"no moment is called '{moment}'", hint=f"one of {', '.join(MOMENTS)}")
    return MOMENTS[moment]


def take_over_parked(session: Session) -> parked.Parked:
    """The probe and its waiting call in a clone of :data:`PARKED`. Raises GuestError when the probe is silent."""
    notes = session.notes["parked"]
    return parked.take_over(session.board.consoles[notes["port"]], notes)


def label_of(spec: BoardSpec, moment: Moment) -> str:
    """What people call the template: ``default2-ready`` is board default with two guests, all ready."""
    return f"{spec.name}{len(spec.guests)}-{moment.name}"


def inputs_of(spec: BoardSpec, stack: Stack, moment: Moment) -> dict[str, object]:
    """Everything that the content of a template depends on."""
    fds = dict.fromkeys([*qemu.console_names(spec), "qmp"], 0)
    return {
        "board": spec,
        "files": [stack.flash, stack.xen, stack.kernel, stack.dom0_ramdisk, Path(stack.qemu.argv()[-1])],
        "line": [*qemu.common_argv("id"), *qemu.machine_argv(spec, None), *qemu.device_argv(spec, fds)],
        "moment": [moment.name, moment.guests, moment.source],
        "used": [] if moment.files is None else list(moment.files()),
        "code": sorted(path for pattern in _SOURCES for path in PACKAGE.glob(pattern)),
        "key": stack.keys.host_public.read_text(),
    }


@contextmanager
def template(
    store: TemplateStore, spec: BoardSpec, stack: Stack, moment: Moment = READY, progress: Progress | None = None
) -> Iterator[Template]:
    """The verified template of this moment, made now if need be; its files stay while the context lasts."""
    told = progress or Silent()

    @contextmanager
    def make(ram: Ram, run_dir: Path) -> Iterator[tuple[Board, dict[str, Any]]]:
        with _ready_to_save(spec, stack, moment, ram, run_dir, told) as session:
            yield session.board, session.about()

    with store.get(label_of(spec, moment), inputs_of(spec, stack, moment), make) as found:
        yield found


def _ready_to_save(spec: BoardSpec, stack: Stack, moment: Moment, ram: Ram, run_dir: Path, told: Progress) -> Session:
    """A board at the moment, calm; booted once more when a guest of the first one has lost its timer."""
    for last in (False, True):
        session = Session(spec, stack, run_dir, board=watch(Board(spec, stack, run_dir, ram=ram)))
        try:
            session.boot(told, guests=moment.guests)
            if moment.further is not None:
                moment.further(session)
            session.prepare_to_save()
            wait_until_calm(session.board)
        except BaseException as error:
            session.close()
            if last or not isinstance(error, LostTimerError):
                raise
            # How it came to that is worth more than disk space.
            evidence = run_dir.with_name(f"{run_dir.name}.lost-timer")
            shutil.rmtree(evidence, ignore_errors=True)
            run_dir.rename(evidence)
            told.say(f"{error}; its logs are in {evidence}; booting once more")
        else:
            return session
    raise AssertionError("the last boot returns or raises")


def clone_session(
    store: TemplateStore,
    spec: BoardSpec,
    stack: Stack,
    run_dir: Path,
    moment: Moment = READY,
    *,
    trace: bool = False,
    lockstep: Path | None = None,
    progress: Progress | None = None,
) -> Session:
    """A running session of one's own at this moment; the caller closes it.

    ``trace``, ``lockstep``: see :meth:`Session.from_template`.
    """
    with template(store, spec, stack, moment, progress) as found:
        return Session.from_template(found, spec, stack, run_dir, trace=trace, lockstep=lockstep)
