# SPDX-License-Identifier: GPL-2.0-or-later
"""Sabotage of a board in lock-step: on a call's way through the real Xen and OP-TEE, one thing becomes another.

The trace does not show it as a change. Where Xen gives (to OP-TEE, to the guest), the change comes before the record;
where Xen gets (from the guest, from OP-TEE), after it. So the trace is that of a mediator that does the wrong thing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from framework.probe.client import Probe
from framework.target.target import Target
from framework.trace.format import Kind
from framework.trace.live import Held, Space
from framework.trace.xen_symbols import XenLayout
from mediator_ref import DEVIATIONS, Limits
from mediator_ref.abi import CALL_WITH_ARG, RETURN_FROM_RPC, U32, pair
from mediator_ref.events import PAGE_SIZE


class At(Enum):
    """Places on a call's way: the kind of event, and whether the change comes before its record."""

    TRAP = Kind.GUEST_CALL, False
    TO_TEE = Kind.EL3_CALL, True
    IN_TEE = Kind.EL3_CALL, False
    SAID = Kind.EL3_RETURN, True
    """What OP-TEE says becomes another: no sabotage of Xen, but the scene for one."""
    HEARD = Kind.EL3_RETURN, False
    ANSWER = Kind.GUEST_RETURN, True
    GONE = Kind.DOMAIN_DESTROY, True


PATCHES = Path(__file__).parent / "payloads" / "sabotage"
"""Faults of Xen that cannot be made in lock-step."""

HOLD = frozenset(at.value[0] for at in At if not at.value[1])
BEFORE = frozenset(at.value[0] for at in At if at.value[1])

_LISTS = {
    "buffer": ("xen_tee_bufs", "xen_buf_list"),
    "rpc": ("xen_tee_rpcs", "xen_rpc_list"),
    "call": ("xen_tee_calls", "xen_call_list"),
}


class Scene:
    """The board at an event: its registers, and where the memory is that the domain's calls are about.

    ``message``: IPA of the argument page, ``copy``: MA of its shadow, ``replies``: both for each RPC page, ``trap``:
    the guest's registers at its latest call. ``in_tee``: domains of which a vCPU is in OP-TEE. ``kept``: a number to
    put back.
    """

    held: Held

    def __init__(self, layout: XenLayout) -> None:
        self.xen = layout.core | layout.tee | layout.books
        self.trap: tuple[int, ...] = ()
        self.message = self.copy = self.kept = 0
        self.in_tee: set[int] = set()
        self.replies: list[tuple[int, int]] = []

    def see(self, held: Held) -> None:
        """Take in an event."""
        self.held, regs = held, held.event.regs
        fid, named = regs[0] & U32, pair(regs[1], regs[2]) if len(regs) > 2 else 0
        if held.event.kind == Kind.GUEST_CALL:
            self.trap = regs
            self.message = named if fid == CALL_WITH_ARG else self.message
        elif held.event.kind == Kind.EL3_CALL and held.before:
            self.copy = named if fid == CALL_WITH_ARG else self.copy
            if fid == RETURN_FROM_RPC and named and pair(regs[4], regs[5]):
                self.replies.append((pair(self.trap[1], self.trap[2]), named))
        elif held.event.domain is not None and held.event.kind in (Kind.EL3_CALL, Kind.EL3_RETURN):
            (self.in_tee.add if held.event.kind == Kind.EL3_CALL else self.in_tee.discard)(held.event.domain)

    def word(self, place: tuple[Space, int], size: int = 8) -> int:
        """A number in memory."""
        return int.from_bytes(self.held.read(*place, size), "little")

    def structure(self, name: str) -> int:
        """Address of one of Xen's structures: of the current domain, its first buffer, that buffer's first page, …; a
        symbol has none, and stands for itself."""
        at = self._pointer
        if name == "":
            return 0
        if name == "cpu":
            return self.held.read_register("TPIDR_EL2")
        if name == "domain" and self.held.event.kind == Kind.DOMAIN_DESTROY:
            return self.held.event.regs[0]
        if name == "domain":
            return at(at(self.structure("cpu") + self.xen["xen_curr_vcpu"]) + self.xen["xen_vcpu_domain"])
        if name == "optee":
            return at(self.structure("domain") + self.xen["xen_domain_tee"])
        if name == "page":
            return at(self.structure("buffer") + self.xen["xen_buf_pages"])
        head, node = _LISTS[name]
        return at(self.structure("optee") + self.xen[head]) - self.xen[node]

    def _pointer(self, address: int) -> int:
        return self.word((Space.VA, address))


Place = Callable[[Scene], tuple[Space, int]]
Action = Callable[[Scene], None]


def message(scene: Scene) -> tuple[Space, int]:
    """Place of the guest's argument page."""
    return Space.IPA, scene.message


def copy(scene: Scene) -> tuple[Space, int]:
    """Place of Xen's shadow of it."""
    return Space.MA, scene.copy


def page_list(scene: Scene) -> tuple[Space, int]:
    """Place of the page list of the message's first parameter."""
    return Space.IPA, scene.word((Space.IPA, scene.message + 40)) & -PAGE_SIZE


def reply(scene: Scene) -> tuple[Space, int]:
    """Place of the guest's latest RPC page."""
    return Space.IPA, scene.replies[-1][0]


def reply_copy(scene: Scene) -> tuple[Space, int]:
    """Place of Xen's shadow of it."""
    return Space.MA, scene.replies[-1][1]


def first_reply_copy(scene: Scene) -> tuple[Space, int]:
    """Place of Xen's shadow of the first RPC page."""
    return Space.MA, scene.replies[0][1]


def xens(structure: str, member: str) -> Place:
    """Place of a member of one of Xen's structures (:meth:`Scene.structure`), or of a symbol."""
    return lambda scene: (Space.VA, scene.structure(structure) + scene.xen[member])


def put(place: Place, value: int | Callable[[Scene], int], offset: int = 0, size: int = 8) -> Action:
    """Write a number."""

    def act(scene: Scene) -> None:
        space, address = place(scene)
        number = value if isinstance(value, int) else value(scene)
        scene.held.write(space, address + offset, number.to_bytes(size, "little"))

    return act


def add(place: Place, amount: int, size: int = 8) -> Action:
    """Change a number by an amount."""
    return lambda scene: put(place, (scene.word(place(scene), size) + amount) % (1 << 8 * size), size=size)(scene)


@dataclass(frozen=True)
class Change:
    """What becomes another at the next event of a place, whose x0 is ``on`` (its low half; None: any), ``when`` it is
    time."""

    at: At
    regs: Mapping[str, int | Callable[[Scene], int]] = field(default_factory=dict)
    do: Action | None = None
    on: int | None = None
    when: Callable[[Scene], bool] = lambda _scene: True

    def meets(self, scene: Scene) -> bool:
        """Whether this event is meant."""
        event, before = scene.held.event, scene.held.before
        return (event.kind, before) == self.at.value and self.on in (None, event.regs[0] & U32) and self.when(scene)

    def apply(self, scene: Scene) -> None:
        """Make the change."""
        for name, value in self.regs.items():
            scene.held.write_register(name, value if isinstance(value, int) else value(scene))
        if self.do is not None:
            self.do(scene)


class Saboteur:
    """Consumer of a board's events that makes the changes, one after the other, once it is ``armed``; then it is
    ``done``."""

    def __init__(self, changes: Iterable[Change], layout: XenLayout) -> None:
        self.armed = False
        self.done = threading.Event()
        self._left = deque(changes)
        self._scene = Scene(layout)

    def __call__(self, held: Held) -> None:
        self._scene.see(held)
        if self.armed and self._left and self._left[0].meets(self._scene):
            self._left.popleft().apply(self._scene)
        if not self._left:
            self.done.set()


@dataclass(frozen=True)
class Rig:
    """A board with the probes that wait on it."""

    target: Target
    probes: list[Probe]

    @property
    def probe(self) -> Probe:
        """The first."""
        return self.probes[0]


Stimulus = Callable[[Rig], Iterator[None]]
"""What is done on a board; what is changed is what follows its ``yield``."""


@dataclass(frozen=True)
class Sabotage:
    """A way to make a board break a rule.

    ``patch``: a Xen with this fault, for what cannot be reached in lock-step; ``boots``: from power-on, until the
    changes are made; ``limits``: those that the check is told. ``mended``: a known deviation that the check is not told
    of, because it is the only way to break the rule.
    """

    stimulus: Stimulus
    changes: tuple[Change, ...] = ()
    checkpoint: str = "probe"
    patch: str = ""
    boots: bool = False
    limits: Limits | None = None
    mended: str = ""

    @property
    def deviations(self) -> dict[str, object]:
        """The known deviations that the check is told of."""
        return {id_: known for id_, known in DEVIATIONS.items() if id_ != self.mended and known.seen_in}
