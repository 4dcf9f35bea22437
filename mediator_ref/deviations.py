"""Known differences between Xen's mediator and what it should do. A list, so that known and new are never confused.

Each entry names the rules it breaks and the condition under which it does. The checker evaluates the condition where
the rule is decided; only a nonconformance that meets it becomes a *deviation*. A ledger of what the implementation
holds with all its known defects (:class:`mediator_ref.state.Ledger`) makes the conditions exact: a leak explains an
OUT_OF_MEMORY only when the leaked amount really reaches the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mediator_ref.rules import Severity


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known difference. ``disclosure``: an isolation finding that goes to the vendor's security team first."""

    id: str
    rules: tuple[str, ...]
    title: str
    condition: str
    where: str
    severity: Severity
    status: str
    stimulus: str
    versions: str = "Xen 4.17 .. 4.22"
    disclosure: bool = False


_ISO, _AVAIL, _CORR, _ABI = Severity.ISOLATION, Severity.AVAILABILITY, Severity.CORRECTNESS, Severity.ABI

_ALL = (
    Deviation(
        "D1",
        ("RPC-8",),
        "a contiguous address in the reply to SHM_ALLOC goes to OP-TEE untranslated",
        "the reply has ret = 0, one parameter with attr 0x0A and an address",
        "handle_rpc_cmd_alloc",
        _ISO,
        "seen",
        "answer SHM_ALLOC with attr 0x0A and an address of the guest's choice",
        disclosure=True,
    ),
    Deviation(
        "D2",
        ("MEM-6", "MEM-7", "MEM-8", "MEM-10"),
        "buffers are released by a cookie from the message, not by what the call registered",
        "an earlier call completed that named a buffer it had not registered (NULL TMEM, or REGISTER_SHM that failed), "
        "or left one that it had",
        "do_call_with_arg, free_shm_buffers",
        _ISO,
        "seen",
        "register C; invoke with a NULL TMEM and shm_ref = C; register C again",
        disclosure=True,
    ),
    Deviation(
        "D3",
        ("MEM-7",),
        "a failed translation leaks the pages it did not get to from the domain's count",
        "the leaked count reaches the limit on shared pages",
        "translate_noncontig, free_optee_shm_buf",
        _AVAIL,
        "seen",
        "register 129 pages of which the first is bad, 127 times",
    ),
    Deviation(
        "D4",
        ("RPC-4", "RPC-7", "STD-1"),
        "the reply's page is looked up by the guest's x1:x2; an unknown cookie loses the call",
        "x1:x2 differ from those of the request (RPC-7, RPC-4), or lost calls reach the thread limit (STD-1)",
        "handle_rpc_cmd",
        _AVAIL,
        "seen",
        "zero x1 and x2 when returning from RPC_CMD",
    ),
    Deviation(
        "D5",
        ("MEM-6", "MEM-7", "MEM-8"),
        "buffers translated before a parameter that failed stay registered",
        "buffers left by failed calls fill the slots or hold the cookie",
        "handle_std_call",
        _AVAIL,
        "seen",
        "invoke with a good and then a contiguous buffer, 16 times",
    ),
    Deviation(
        "D6",
        ("RPC-11",),
        "an undeliverable request is resumed with OP-TEE's x0 instead of CALL_RETURN_FROM_RPC",
        "x0 at EL3 repeats what OP-TEE returned",
        "do_call_with_arg",
        _CORR,
        "seen",
        "balloon out the RPC page, then cause any RPC command",
    ),
    Deviation(
        "D7",
        ("STD-10",),
        "EBADADDR of a failed write-back is overwritten by OP-TEE's x0",
        "x0 is what OP-TEE returned",
        "do_call_with_arg",
        _CORR,
        "seen",
        "make the argument page read-only during an RPC",
    ),
    Deviation(
        "D8",
        ("STD-3",),
        "x0 is not set for too many parameters",
        "x0 is the function id the guest called with",
        "handle_std_call",
        _CORR,
        "seen",
        "num_params = 128",
    ),
    Deviation(
        "D9",
        ("MEM-5",),
        "size + offset wraps around and is cut to 32 bits",
        "size + offset exceeds 64 bits or 2^32 pages, and what is left passes the limit",
        "translate_noncontig",
        _CORR,
        "seen",
        "size = 2^64-1 with offset 4095; size = 2^44 + 4096",
    ),
    Deviation(
        "D10",
        ("LIFE-6",),
        "x1..x7 of probe calls are not set",
        "a probe call with other registers than zero",
        "optee_probe",
        _ABI,
        "wrong reading of Xen 4.17: it probes before it uses SMCCC 1.1",
        "boot",
    ),
    Deviation(
        "D11",
        ("RPC-4", "RPC-8", "MEM-6", "MEM-7", "MEM-8"),
        "whether a reply is one to SHM_ALLOC is read from the reply, not from the request",
        "the guest changed cmd in its reply to or from SHM_ALLOC",
        "handle_rpc_cmd",
        _ISO,
        "seen",
        "answer SHM_ALLOC with cmd = GET_TIME and a page list of one's own",
        disclosure=True,
    ),
    Deviation(
        "D12",
        ("MEM-6", "MEM-7", "MEM-8", "MEM-10"),
        "a REGISTER_SHM or UNREGISTER_SHM that OP-TEE refused by x0 counts as done when the guest preset ret = 0",
        "an earlier one of them returned x0 != 0 with ret = 0",
        "do_call_with_arg",
        _ISO,
        "seen",
        "exhaust OP-TEE's memory for the guest, then unregister with ret = 0, and register the same cookie",
        disclosure=True,
    ),
    Deviation(
        "D13",
        ("RPC-2", "RPC-13", "MEM-10"),
        "OP-TEE's FREE for a page that was turned down releases the live RPC page of the same cookie, and its shadow",
        "an earlier ALLOC was answered with the cookie of a live RPC page and turned down",
        "handle_rpc_func_alloc, free_shm_rpc",
        _ISO,
        "seen",
        "while one call waits in an RPC, answer another call's ALLOC with 0:0 and the first one's cookie",
        disclosure=True,
    ),
    Deviation(
        "D14",
        ("MEM-6", "MEM-7", "MEM-8", "MEM-10"),
        "OP-TEE's SHM_FREE for a reply it could not use releases a buffer that was registered otherwise",
        "an earlier SHM_FREE named a cookie that was not given in answer to SHM_ALLOC",
        "handle_rpc_return",
        _ISO,
        "seen",
        "register C; answer SHM_ALLOC with a NULL buffer and shm_ref = C; register C again",
        disclosure=True,
    ),
    Deviation(
        "D15",
        ("RPC-4", "RPC-9"),
        "an unreadable answer to the mediator's own request leaves it waiting; the call's next reply is thrown away",
        "the answer to the request to free a buffer could not be read or did not fit",
        "handle_rpc_cmd",
        _CORR,
        "seen",
        "answer SHM_ALLOC with a bad page, then the request to free it with num_params = 200, then the next request",
    ),
)

DEVIATIONS: Mapping[str, Deviation] = {d.id: d for d in _ALL}
"""All known deviations by id."""
