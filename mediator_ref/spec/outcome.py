# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of the specification: what has to follow a guest's call or OP-TEE's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mediator_ref import abi
from mediator_ref.domain import Buffer, ShmRpc
from mediator_ref.events import PageKind, Registers
from mediator_ref.rules import RuleId

Patch = tuple[int, bytes]
"""Bytes at an offset of a page."""


class NotObserved(Exception):  # noqa: N818 - not an error: the answer is "not checked"
    """The observer did not see what the mediator decides on. ``reason`` holds no address and no number."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Unknown:
    """No statement is possible, because something was not observed. ``rule``: the one that stays unchecked."""

    reason: str
    rule: RuleId = RuleId.STD_8


# What has to follow a guest's call


@dataclass(slots=True)
class Request:
    """The argument page of CALL_WITH_ARG as it is copied (``call->xen_arg``), before its buffers are translated."""

    page: bytes
    kind: PageKind | None
    cmd: int
    num_params: int
    params: Sequence[abi.Param] = ()


@dataclass(slots=True)
class Refusal:
    """A buffer that is not accepted: the result for ``ret``, the rule that says so, the reason, the parameter."""

    ret: int
    rule: RuleId
    reason: str
    param: abi.Param


@dataclass(slots=True)
class Translation:
    """What becomes of the buffers of one message.

    ``buffers`` are the accepted ones by index of their parameter, ``None`` where the guest's page list was not
    observed; ``pages`` counts them by cookie. ``nulls`` counts parameters without a buffer. With a ``refusal`` the
    message is not passed on, and what was accepted before is released.
    """

    buffers: dict[int, Buffer | None] = field(default_factory=dict)
    pages: dict[int, int] = field(default_factory=dict)
    nulls: int = 0
    refusal: Refusal | None = None


@dataclass(slots=True)
class Refuse:
    """Answer the guest without calling OP-TEE: ``x0``, and with ``ret`` a result in the guest's message."""

    rule: RuleId
    x0: int
    reason: str = ""
    ret: int | None = None
    request: Request | None = None
    translation: Translation | None = None


@dataclass(slots=True)
class Forward:
    """Call OP-TEE with these x0..x6; ``None`` for the halves of the address of a shadow page."""

    regs: tuple[int | None, ...]
    request: Request | None = None
    translation: Translation | None = None


@dataclass(slots=True)
class Offer:
    """Resume OP-TEE with the shadow of the RPC page a guest offers, or with 0 when ``reason`` says why not.

    ``cookie_in_use``: that is the reason, and it rests on what else the domain did.
    """

    rule: RuleId
    regs: tuple[int | None, ...]
    ipa: int
    cookie: int
    reason: str = ""
    cookie_in_use: bool = False


class ReplyKind(Enum):
    """What becomes of a guest's reply to an RPC command."""

    COPY = "the reply is copied, with the address of a buffer translated"
    GENERIC_ERROR = "the reply cannot be read: OP-TEE gets an error"
    XEN_RPC_DONE = "the reply is to a request of the mediator's own: OP-TEE gets an error for its own request"
    HIDE_ADDRESS = "the reply carries an address that cannot be translated: OP-TEE must not get it"
    ASK_TO_FREE = "the buffer cannot be shared: the guest is asked to free it"


@dataclass(slots=True)
class Reply:
    """A guest's reply to an RPC command, read from the page of the request.

    ``regs`` resume OP-TEE, unless the guest is asked to free a buffer first. ``page`` and ``size`` are the message,
    where it can be read, ``params`` its parameters, where one may be a buffer. ``renamed``: its cmd is not that of the
    request.
    """

    kind: ReplyKind
    rpc: ShmRpc
    regs: tuple[int | None, ...]
    reason: str = ""
    page: bytes = b""
    size: int = 0
    params: Sequence[abi.Param] = ()
    translation: Translation | None = None
    renamed: bool = False


Expected = Refuse | Forward | Offer | Reply | Unknown
"""What has to follow a guest's call."""

# What has to follow OP-TEE's answer


@dataclass(slots=True)
class PageWrite:
    """The guest's page at ``ipa`` gets ``patches`` and nothing else; ``size`` is the length of the message in it."""

    ipa: int
    patches: list[Patch]
    size: int


@dataclass(slots=True)
class FastReturn:
    """The guest finds these registers, from x0 on, after a fast call."""

    rule: RuleId
    regs: Registers


@dataclass(slots=True)
class Complete:
    """A standard call ended with OP-TEE's ``x0``. ``writable``: whether the results can be written to the guest.

    ``params`` are those of the shadow argument, as OP-TEE left it.
    """

    x0: int
    writable: bool | None
    page: PageWrite | Unknown
    params: list[abi.Param]


@dataclass(slots=True)
class Deliver:
    """The guest is handed a request: registers from x0 on, and for an RPC command a message in its RPC page.

    ``writable``: whether that page can be written, ``None`` when not observed. ``params`` are those of the message.
    """

    regs: Registers
    page: PageWrite | Unknown | None = None
    writable: bool | None = None
    params: Sequence[abi.Param] = ()


@dataclass(slots=True)
class Restart:
    """The request cannot be handed to the guest: OP-TEE is resumed with these x0 and x3."""

    x0: int
    x3: int


@dataclass(slots=True)
class Foreign:
    """EL3's answer is none of OP-TEE's: the guest gets its x0 and nothing else."""

    x0: int


Answer = FastReturn | Complete | Deliver | Restart | Foreign | Unknown
"""What has to follow OP-TEE's answer."""
