# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain as a correct mediator sees it: what Xen keeps in ``struct optee_domain``.

The field names are those of optee.c where it has the same thing. The specification reads these objects and never
changes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Buffer:
    """Guest memory OP-TEE may use (``struct optee_shm_buf``): ``mfns`` are pinned as long as the buffer lives."""

    cookie: int
    mfns: tuple[int, ...]
    rpc: bool = False
    """Given in answer to SHM_ALLOC: only such a buffer ends with SHM_FREE."""

    @property
    def pages(self) -> int:
        """Pages it counts for."""
        return len(self.mfns)


@dataclass(slots=True)
class ShmRpc:
    """A page for RPC requests and its shadow (``struct shm_rpc``).

    ``ma`` is the address of the shadow (``xen_arg_pg``); ``shadow`` its content when last observed.
    """

    cookie: int
    ipa: int
    mfn: int | None
    ma: int | None
    shadow: bytes | None = None


@dataclass(slots=True)
class StdCall:
    """A standard call from CALL_WITH_ARG to its end, across any number of RPCs (``struct optee_std_call``).

    ``seq`` is the event of the guest's CALL_WITH_ARG. ``ma`` is the address of the shadow argument (``xen_arg_pg``).
    ``arg_ipa``, ``ma`` and ``cmd`` are ``None`` for a call whose beginning was not observed.
    """

    seq: int
    arg_ipa: int | None
    ma: int | None
    cmd: int | None = None
    arg_mfn: int | None = None
    cookies: list[int] = field(default_factory=list)
    """Buffers translated for this call."""
    list_pages: list[int] = field(default_factory=list)
    rpc_list_pages: list[int] = field(default_factory=list)
    thread: int | None = None
    rpc_op: int | None = None
    rpc_params: tuple[int, int] = (0, 0)
    rpc_cmd: int | None = None
    """Command of the request the guest is serving (``xen_arg->cmd`` of the RPC page)."""
    rpc_buffer_type: int | None = None
    xen_rpc: bool = False
    """The guest is serving a request of the mediator's own (``OPTEE_CALL_XEN_RPC``)."""
    stale_xen_rpc: bool = False
    """The answer to the mediator's own request could not be read; a mediator with D15 still waits for one."""
    giving_back: int | None = None
    """Cookie of an RPC page that OP-TEE has asked to free: it lets go of it when it is resumed."""
    rejected: int | None = None
    """Cookie of an RPC page that was rejected; OP-TEE will ask the guest to free it."""
    xen_arg: bytes | None = None
    """The shadow argument as it was handed over, where it was observed."""
    told: int = 0
    """The event with which the guest heard that it is suspended."""
    references: tuple[int, ...] = ()
    named_messages: bool = False
    """OP-TEE accepted a reference to its messages' own pages in it (D21)."""
    """Cookies that it names by reference, until OP-TEE's answer shows whether it accepted them."""
    resumed: int = 0
    """The event with which it was resumed last."""
    tainted: str = ""
    """Reason why the rest of the call is not checked."""
    lost: bool = False
    """OP-TEE lost the call, and the mediator keeps its context."""


@dataclass(slots=True)
class ShmAccounting:
    """Pages by cookie, and pages in excess, that count against a domain's limits."""

    held: dict[int, int] = field(default_factory=dict)
    leaked_pages: int = 0

    @property
    def pages(self) -> int:
        """Pages counted against the limit (``optee_shm_buf_pages``)."""
        return sum(self.held.values()) + self.leaked_pages

    def copy(self) -> ShmAccounting:
        """Make an independent copy."""
        return ShmAccounting(dict(self.held), self.leaked_pages)


@dataclass(slots=True)
class Domain:
    """One domain (``struct optee_domain``).

    ``tee``: whether it has a mediator, ``None`` when that is not known. ``history_unknown`` is the reason why parts of
    its past are not known, or empty. ``calls``: suspended ones by thread; ``running``: those in OP-TEE or the mediator,
    by vCPU. ``returned_cookies``: of RPC pages OP-TEE gave back; ``ended_cookies``: of buffers that went with the call
    that had brought them.
    """

    domid: int
    tee: bool | None = None
    history_unknown: str = ""
    calls: dict[int, StdCall] = field(default_factory=dict)
    running: dict[int, StdCall] = field(default_factory=dict)
    rpcs: dict[int, ShmRpc] = field(default_factory=dict)
    buffers: dict[int, Buffer] = field(default_factory=dict)
    returned_cookies: set[int] = field(default_factory=set)
    ended_cookies: set[int] = field(default_factory=set)

    @property
    def call_count(self) -> int:
        """Standard calls that have not ended."""
        return len(self.calls) + len(self.running)

    def accounting(self) -> ShmAccounting:
        """Count the buffers against the limits."""
        return ShmAccounting({cookie: buffer.pages for cookie, buffer in self.buffers.items()})

    def pinned(self) -> set[int]:
        """Frames OP-TEE may use at the moment."""
        frames = {mfn for buffer in self.buffers.values() for mfn in buffer.mfns}
        frames.update(rpc.mfn for rpc in self.rpcs.values() if rpc.mfn is not None)
        return frames
