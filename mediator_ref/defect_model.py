# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mediator with the known defects holds, beside what a correct one holds.

It makes the conditions of the deviations exact: a leak explains an OUT_OF_MEMORY only when the leaked amount really
reaches the limit. ``listed`` are the deviations the mediator under test is known to have.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.domain import Buffer, Domain, ShmAccounting, StdCall
from mediator_ref.events import PAGE_SIZE
from mediator_ref.limits import Limits
from mediator_ref.rules import DeviationId as D
from mediator_ref.rules import RuleId
from mediator_ref.spec.guest_memory import GuestMemory
from mediator_ref.spec.outcome import Refusal, Translation
from mediator_ref.spec.translate import allocate_optee_shm_buf, page_count, walk_list

_RET = abi.ARG_FIELDS["ret"]


@dataclass(slots=True)
class DefectState:
    """A domain in a mediator with the known defects, where it differs from the correct one."""

    accounting: ShmAccounting | None = None
    """What counts against the limits, ``None`` while it is the same as for a correct mediator."""
    deviation_by_cookie: dict[int, D] = field(default_factory=dict)
    """The deviation that made a buffer differ, by its cookie."""
    passed_on: dict[tuple[int, int], D] = field(default_factory=dict)
    """The deviation that let an address of the guest's through to OP-TEE (D1, D11), by the reply's cookie and the
    address's frame number."""
    lost_calls: int = 0
    """Calls that can never be resumed and keep their thread (D4)."""
    lost_with_their_page: int = 0
    """Those of them whose RPC page is gone (D13)."""
    released_rpcs: set[int] = field(default_factory=set)
    """Cookies of RPC pages that are released although a call uses them (D13)."""
    duplicate_cookies: set[int] = field(default_factory=set)
    """Of those, the ones accepted a second time: OP-TEE now uses two pages under one cookie (D13)."""

    def forget(self) -> None:
        """The domain is gone, or nothing is known of it any more."""
        self.accounting = None
        self.deviation_by_cookie.clear()
        self.passed_on.clear()
        self.lost_calls = self.lost_with_their_page = 0
        self.released_rpcs.clear()
        self.duplicate_cookies.clear()

    @property
    def leaked_pages(self) -> int:
        """Pages that failed translations left in the domain's count (D3)."""
        return 0 if self.accounting is None else self.accounting.leaked_pages

    def assertions(self) -> set[D]:
        """Deviations whose leftovers a debug Xen asserts not to find at the domain's end: leaked pages, lost calls."""
        return ({D.D3} if self.leaked_pages else set()) | ({D.D4} if self.lost_calls else set())

    def accounting_for(self, domain: Domain) -> ShmAccounting:
        """The accounting with known defects, made on first use."""
        if self.accounting is None:
            self.accounting = domain.accounting()
        return self.accounting

    def drop_if_equal(self, domain: Domain) -> None:
        """Forget the second accounting once it says the same as the first."""
        accounting = self.accounting
        if accounting is not None and not accounting.leaked_pages and accounting.held == domain.accounting().held:
            self.accounting = None
            self.deviation_by_cookie.clear()


@dataclass(slots=True)
class DefectTranslation(Translation):
    """What becomes of a message's buffers, and the accounting after it."""

    accounting: ShmAccounting = field(default_factory=ShmAccounting)


def no_thread_left(domain: Domain, defects: DefectState, threads: int | None) -> bool:
    """D4: lost calls, and they alone, make the domain reach its limit of calls."""
    return threads is not None and domain.call_count < threads <= domain.call_count + defects.lost_calls


def wrapped_page_count(size: int, buf_ptr: int) -> int:
    """D9: pages of a buffer in 64-bit arithmetic, cut to 32 bits."""
    total = (size + (buf_ptr & abi.OFFSET_MASK)) & abi.U64
    return ((total + PAGE_SIZE - 1 & abi.U64) // PAGE_SIZE) & abi.U32


def wraps(param: abi.Param) -> bool:
    """Tell whether D9 makes a difference for a buffer."""
    return wrapped_page_count(param.b, param.a) != page_count(param.b, param.a)


def translate_with_defects(
    held: ShmAccounting, params: Sequence[abi.Param], guest: GuestMemory, limits: Limits, listed: Container[str]
) -> DefectTranslation:
    """Translate the buffers of a message as a mediator with D3, D5 and D9 does, where they are listed."""
    result = DefectTranslation(accounting=held.copy())
    now = result.accounting
    for index, param in enumerate(params):
        if param.type not in abi.TMEM_TYPES or not param.a:
            continue
        pages = wrapped_page_count(param.b, param.a) if D.D9 in listed else page_count(param.b, param.a)
        refusal = None
        if not param.attr & abi.ATTR_NONCONTIG:
            refusal = Refusal(abi.Tee.BAD_PARAMETERS, RuleId.MEM_4, "a contiguous buffer", param)
        elif pages > limits.buffer_pages or pages == 0:
            refusal = Refusal(abi.Tee.OUT_OF_MEMORY, RuleId.MEM_5, f"a buffer of {pages} pages", param)
        else:
            refusal = allocate_optee_shm_buf(now, param, pages, limits)
        if refusal is None:
            walk = walk_list(param.a, pages, guest)
            if walk.bad:
                if D.D3 in listed:
                    now.leaked_pages += pages - len(walk.mfns)
                refusal = Refusal(
                    abi.Tee.BAD_PARAMETERS, RuleId.MEM_3, "a page is not the domain's writable RAM", param
                )
        if refusal is not None:
            result.refusal = refusal
            if D.D5 not in listed:
                result.accounting = ShmAccounting(dict(held.held), now.leaked_pages)
            return result
        result.buffers[index] = None if walk.unknown else Buffer(param.c, walk.mfns)
        now.held[param.c] = result.pages[param.c] = pages
    return result


def release_in_defect_model(page: bytes, params: list[abi.Param]) -> set[int]:
    """D2, D12: cookies released when a call ends, read from the shadow argument as OP-TEE left it."""
    cmd = abi.U32_AT.unpack_from(page)[0]
    ret = abi.U32_AT.unpack_from(page, _RET)[0]
    first: int = abi.PARAM.unpack_from(page, abi.HEADER_SIZE)[3]
    if cmd == abi.MsgCmd.REGISTER_SHM:
        return {first} if ret else set()
    if cmd == abi.MsgCmd.UNREGISTER_SHM:
        return set() if ret else {first}
    return {param.c for param in params if param.attr & abi.ATTR_TYPE_MASK in abi.TMEM_TYPES}


def too_early_release(call: StdCall, x0: int, ret: int) -> D:
    """Name the deviation by which a call that ended releases other buffers than it should (D2, D12).

    D12: OP-TEE refused to register or unregister by x0, and ``ret``, which the guest preset, says that it did not.
    """
    memory = call.cmd in (abi.MsgCmd.REGISTER_SHM, abi.MsgCmd.UNREGISTER_SHM)
    return D.D12 if memory and x0 != abi.SmcReturn.OK and ret == abi.Tee.SUCCESS else D.D2


def rpc_page_released(defects: DefectState, cookie: int) -> bool:
    """D13: tell whether the RPC page of a cookie is released, or another one, although a call uses it."""
    return cookie in defects.released_rpcs or cookie in defects.duplicate_cookies
