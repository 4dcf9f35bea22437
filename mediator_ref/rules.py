# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a mediator, one line each, with their source and the cost of a violation.

A rule's id never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum


class RuleId(StrEnum):
    """Ids of the rules, in the order of the dispatch. Every id has exactly one row in the table below."""

    DISP_1 = "DISP-1"
    DISP_2 = "DISP-2"
    DISP_3 = "DISP-3"
    DISP_4 = "DISP-4"
    DISP_5 = "DISP-5"
    REGS_1 = "REGS-1"
    REGS_2 = "REGS-2"
    CID_1 = "CID-1"
    FAST_1 = "FAST-1"
    FAST_2 = "FAST-2"
    FAST_3 = "FAST-3"
    CAPS_1 = "CAPS-1"
    CAPS_2 = "CAPS-2"
    CACHE_1 = "CACHE-1"
    STD_1 = "STD-1"
    STD_2 = "STD-2"
    STD_3 = "STD-3"
    STD_4 = "STD-4"
    STD_5 = "STD-5"
    STD_6 = "STD-6"
    STD_7 = "STD-7"
    STD_8 = "STD-8"
    STD_9 = "STD-9"
    STD_10 = "STD-10"
    STD_11 = "STD-11"
    STD_12 = "STD-12"
    MEM_1 = "MEM-1"
    MEM_2 = "MEM-2"
    MEM_3 = "MEM-3"
    MEM_4 = "MEM-4"
    MEM_5 = "MEM-5"
    MEM_6 = "MEM-6"
    MEM_7 = "MEM-7"
    MEM_8 = "MEM-8"
    MEM_9 = "MEM-9"
    MEM_10 = "MEM-10"
    MEM_11 = "MEM-11"
    RPC_1 = "RPC-1"
    RPC_2 = "RPC-2"
    RPC_3 = "RPC-3"
    RPC_4 = "RPC-4"
    RPC_5 = "RPC-5"
    RPC_6 = "RPC-6"
    RPC_7 = "RPC-7"
    RPC_8 = "RPC-8"
    RPC_9 = "RPC-9"
    RPC_10 = "RPC-10"
    RPC_11 = "RPC-11"
    RPC_12 = "RPC-12"
    RPC_13 = "RPC-13"
    RPC_14 = "RPC-14"
    FETCH_1 = "FETCH-1"
    FETCH_2 = "FETCH-2"
    TIME_1 = "TIME-1"
    ISO_1 = "ISO-1"
    LIFE_1 = "LIFE-1"
    LIFE_2 = "LIFE-2"
    LIFE_3 = "LIFE-3"
    LIFE_4 = "LIFE-4"
    LIFE_5 = "LIFE-5"
    LIFE_6 = "LIFE-6"
    LIFE_7 = "LIFE-7"
    LIFE_8 = "LIFE-8"
    LIFE_9 = "LIFE-9"
    BOOK_1 = "BOOK-1"
    BOOK_2 = "BOOK-2"
    BOOK_3 = "BOOK-3"
    BOOK_4 = "BOOK-4"
    BOOK_5 = "BOOK-5"
    BOOK_6 = "BOOK-6"
    REF_1 = "REF-1"
    REF_2 = "REF-2"
    HEAP_1 = "HEAP-1"
    HEAP_2 = "HEAP-2"
    CODE_1 = "CODE-1"
    CODE_2 = "CODE-2"
    CODE_3 = "CODE-3"
    CODE_4 = "CODE-4"
    CODE_5 = "CODE-5"


class DeviationId(StrEnum):
    """Ids of the known deviations, see :mod:`mediator_ref.deviations`."""

    D1 = "D1"
    D2 = "D2"
    D3 = "D3"
    D4 = "D4"
    D5 = "D5"
    D6 = "D6"
    D7 = "D7"
    D8 = "D8"
    D9 = "D9"
    D11 = "D11"
    D12 = "D12"
    D13 = "D13"
    D14 = "D14"
    D15 = "D15"
    D16 = "D16"
    D17 = "D17"
    D18 = "D18"
    D19 = "D19"
    D20 = "D20"
    D21 = "D21"


class Severity(Enum):
    """Cost of a violation."""

    ISOLATION = "isolation"
    AVAILABILITY = "availability"
    CORRECTNESS = "correctness"
    ABI = "abi"
    PRACTICE = "practice"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    ``sections``: sections of the specification's behaviour table it comes from; ``requirements``: R1..R22 of the
    original review; ``source``: the public text. ``unobservable`` says why a rule cannot be checked from outside.
    ``needs``: optional observation without which it stays unchecked.
    """

    id: RuleId
    title: str
    severity: Severity
    source: str
    sections: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    needs: str = ""
    unobservable: str = ""


_ISO, _AVAIL, _CORR, _ABI, _CODE = (
    Severity.ISOLATION,
    Severity.AVAILABILITY,
    Severity.CORRECTNESS,
    Severity.ABI,
    Severity.PRACTICE,
)

R = RuleId
_LISTS = "the hypervisor's own lists, which need its symbols and debug information"

# fmt: off
_ROWS = (
    # Entry and dispatch
    Rule(R.DISP_1, "A call with a non-zero immediate gets an undefined-instruction exception",
         _ABI, "SMCCC 2.9; Xen vsmc.c vsmccc_handle_call", ("1.1",), ()),
    Rule(R.DISP_2, "A function that is not offered to guests is answered x0 = -1 and never reaches EL3",
         _ISO, "SMCCC 5.2; Xen optee_handle_call", ("1.1", "1.2"), ("R6",)),
    Rule(R.DISP_3, "An SMC64 function called by a 32-bit domain is answered x0 = -1",
         _ABI, "SMCCC 2.6; Xen vsmccc_handle_call", ("1.1",), ()),
    Rule(R.DISP_4, "A domain without a mediator is answered x0 = -1 and never reaches EL3",
         _ISO, "Xen optee_handle_call", ("1.1", "1.9"), ("R6",)),
    Rule(R.DISP_5,
         "Every call to the trusted OS answers to one guest call or is one of the hypervisor's own",
         _ISO, "Xen optee.c", ("1.2",), ("R6",)),
    Rule(R.REGS_1, "Registers a function does not define are preserved; x4..x17 always",
         _ISO, "optee_smc.h; SMCCC 3.1", ("1.1", "1.2"), ("R10",)),
    Rule(R.REGS_2, "An answer of EL3 that is none of OP-TEE's gives the guest its x0 and nothing else",
         _ISO, "optee_smc.h: return codes; Xen do_call_with_arg", ("1.4", "1.6"), ("R10",)),
    Rule(R.CID_1, "x7 at EL3 is the domain's id plus one, whatever the guest put there",
         _ISO, "optee_smc.h: a7 Hypervisor Client ID register; Xen OPTEE_CLIENT_ID", ("1.2",), ("R11",)),
    # Fast calls
    Rule(R.FAST_1, "A forwarded fast call reaches EL3 with its function id and x1..x6 = 0",
         _ISO, "Xen optee_handle_call", ("1.2",), ("R6",)),
    Rule(R.FAST_2, "A forwarded fast call gives back exactly the documented registers",
         _ABI, "optee_smc.h", ("1.2",), ("R10",)),
    Rule(R.FAST_3, "CALLS_COUNT and GET_SHM_CONFIG are answered by the mediator itself",
         _ABI, "Xen optee_handle_call", ("1.2",), ()),
    Rule(R.CAPS_1, "Of the guest's capabilities only UNIPROCESSOR is passed on",
         _CORR, "Xen handle_exchange_capabilities", ("1.2", "1.3"), ("R6",)),
    Rule(R.CAPS_2,
         "A guest sees only UNREGISTERED_SHM, DYNAMIC_SHM and MEMREF_NULL, and nothing without "
         "DYNAMIC_SHM",
         _ISO, "Xen handle_exchange_capabilities", ("1.3",), ("R6",)),
    Rule(R.CACHE_1,
         "A cookie given back by DISABLE_SHM_CACHE or RPC FREE is released and may be used again",
         _CORR, "optee_smc.h: DISABLE_SHM_CACHE", ("1.2", "1.6"), ("R18",)),
    # Standard calls
    Rule(R.STD_1,
         "A domain runs as many standard calls at once as OP-TEE has threads, the next gets "
         "ETHREAD_LIMIT",
         _AVAIL, "Xen allocate_std_call", ("1.4", "1.8"), ("R4",)),
    Rule(R.STD_2, "An argument address that is not a page of the domain's RAM gets EBADADDR",
         _ISO, "Xen copy_std_request", ("1.4",), ("R3", "R15")),
    Rule(R.STD_3,
         "A message whose parameters do not fit the page gets x0 = 0, BAD_PARAMETERS, origin COMMS",
         _CORR, "Xen handle_std_call", ("1.4", "1.8"), ("R3",)),
    Rule(R.STD_4, "A command other than the six mediated ones gets EBADCMD and the page stays as it is",
         _ISO, "Xen handle_std_call", ("1.4",), ("R6",)),
    Rule(R.STD_5, "CALL_WITH_ARG reaches EL3 with the shadow page in x1:x2, x3 = SHM_CACHED, x4..x6 = 0",
         _ISO, "Xen do_call_with_arg", ("1.2", "1.4"), ()),
    Rule(R.STD_6,
         "The shadow argument is the guest's page as it was at the trap, with only buffer "
         "addresses replaced",
         _ISO, "Xen copy_std_request, translate_params", ("1.4", "1.7"), ("R3", "R22")),
    Rule(R.STD_7,
         "A shadow page is the hypervisor's own: no page of a guest, no shadow page of another "
         "live call",
         _ISO, "Xen copy_std_request", ("1.4", "1.5"), ("R14", "R22")),
    Rule(R.STD_8, "A completed call gives back OP-TEE's x0",
         _ABI, "optee_smc.h", ("1.4",), ()),
    Rule(R.STD_9, "A completed call writes back ret, ret_origin, session and the outputs, and nothing else",
         _ISO, "Xen copy_std_request_back", ("1.4",), ("R10", "R15", "R22")),
    Rule(R.STD_10, "Results that cannot be written back give x0 = EBADADDR",
         _CORR, "Xen copy_std_request_back", ("1.4",), ("R15",)),
    Rule(R.STD_11,
         "From hand-over to completion only ret, ret_origin, session and the outputs change in the shadow argument",
         _ISO, "optee_msg.h; Xen do_call_with_arg", ("1.4",), ("R3", "R22")),
    Rule(R.STD_12, "Attribute bits that the ABI does not define are 0 at EL3, or the call is refused",
         _ABI, "optee_msg.h: OPTEE_MSG_ATTR_*", ("1.7",), ("R3", "R6")),
    # Memory parameters
    Rule(R.MEM_1, "A buffer that breaks no limit is accepted",
         _CORR, "Xen translate_params", ("1.4", "1.7"), ("R18",)),
    Rule(R.MEM_2, "A shadow page list names exactly the frames behind the guest's list; the offset is kept",
         _ISO, "optee_msg.h: OPTEE_MSG_ATTR_NONCONTIG; Xen translate_noncontig", ("1.7",), ("R8", "R19")),
    Rule(R.MEM_3, "A buffer with a page that is not the domain's own writable RAM gets BAD_PARAMETERS",
         _ISO, "Xen translate_noncontig, get_domain_ram_page", ("1.4", "1.7"), ("R8",)),
    Rule(R.MEM_4, "A contiguous buffer given by address gets BAD_PARAMETERS",
         _ISO, "Xen translate_params", ("1.4", "1.7"), ("R3",)),
    Rule(R.MEM_5, "A buffer of more than 129 pages gets OUT_OF_MEMORY, however its size and offset add up",
         _AVAIL, "Xen MAX_SHM_BUFFER_PG", ("1.7", "1.8"), ("R7", "R17")),
    Rule(R.MEM_6, "A domain's 17th buffer gets OUT_OF_MEMORY",
         _AVAIL, "Xen MAX_SHM_BUFFER_COUNT", ("1.7", "1.8"), ("R4",)),
    Rule(R.MEM_7, "A domain that shares too many pages gets OUT_OF_MEMORY",
         _AVAIL, "Xen MAX_TOTAL_SMH_BUF_PG", ("1.7", "1.8"), ("R4", "R18")),
    Rule(R.MEM_8, "A cookie that names a live buffer is refused with BAD_PARAMETERS",
         _ISO, "Xen allocate_optee_shm_buf", ("1.7",), ("R8",)),
    Rule(R.MEM_9, "A NULL buffer is passed on as it is",
         _CORR, "optee_smc.h: MEMREF_NULL; Xen translate_noncontig", ("1.7",), ()),
    Rule(R.MEM_10, "A page OP-TEE may use does not leave the domain",
         _ISO, "Xen get_domain_ram_page", ("1.7",), ("R8",), needs="FrameReleased events"),
    Rule(R.MEM_11,
         "Memory that OP-TEE accepts by reference is registered, or was given for a request, and is still held",
         _ISO, "optee_msg.h: OPTEE_MSG_ATTR_TYPE_RMEM_*; Xen translate_params", ("1.7",), ("R8",)),
    # RPC
    Rule(R.RPC_1, "A suspended call gives the guest OP-TEE's x0..x3",
         _ABI, "optee_smc.h: OPTEE_SMC_RETURN_IS_RPC", ("1.6",), ("R10",)),
    Rule(R.RPC_2, "An offered RPC page is replaced by a shadow page, or by 0 when it cannot be used",
         _ISO, "Xen handle_rpc_func_alloc", ("1.5",), ("R8", "R22")),
    Rule(R.RPC_3, "A request is written to the guest's RPC page, header and parameters and no byte more",
         _CORR, "Xen handle_rpc_return", ("1.6",), ("R22",)),
    Rule(R.RPC_4, "The guest's reply is copied into the shadow, header and parameters and no byte more",
         _CORR, "Xen handle_rpc_cmd", ("1.5",), ("R22",)),
    Rule(R.RPC_5, "Resuming a call that is not suspended gets ERESUME and never reaches EL3",
         _ISO, "Xen get_std_call", ("1.5",), ("R12",)),
    Rule(R.RPC_6, "A call is resumed with the registers its kind of RPC defines",
         _ABI, "optee_smc.h: RETURN_FROM_RPC; Xen handle_rpc", ("1.5",), ()),
    Rule(R.RPC_7, "A reply is taken from the page of the request, whatever the guest leaves in x1 and x2",
         _AVAIL, "optee_smc.h: RPC_FUNC_CMD, a1-2 not used", ("1.5",), ("R2",)),
    Rule(R.RPC_8, "No address in the reply to SHM_ALLOC reaches OP-TEE untranslated",
         _ISO, "Xen handle_rpc_cmd_alloc", ("1.6", "1.7"), ("R8", "R22")),
    Rule(R.RPC_9, "When an allocated buffer cannot be shared the mediator asks the guest to free it",
         _CORR, "Xen issue_rpc_cmd_free", ("1.6",), ("R18",)),
    Rule(R.RPC_10, "After that request OP-TEE gets ret = GENERIC and no parameters",
         _CORR, "Xen handle_xen_rpc_return", ("1.6",), ()),
    Rule(R.RPC_11, "When a request cannot be delivered OP-TEE is resumed with CALL_RETURN_FROM_RPC",
         _CORR, "Xen do_call_with_arg", ("1.6",), ("R2",)),
    Rule(R.RPC_12, "A reply that cannot be read or does not fit gives OP-TEE ret = GENERIC",
         _CORR, "Xen handle_rpc_cmd", ("1.5",), ("R3",)),
    Rule(R.RPC_13, "Turning a page down does not cost another call the RPC page of the same cookie",
         _ISO, "optee_smc.h: RPC_FUNC_FREE; OP-TEE thread_rpc_alloc_arg", ("1.5", "1.6"), ("R8", "R12")),
    Rule(R.RPC_14, "A resumed call changes no shadow of a request that another call waits at",
         _ISO, "Xen handle_rpc_cmd", ("1.5",), ("R12", "R22")),
    # Guest memory
    Rule(R.FETCH_1, "No byte of guest memory is read twice in one call",
         _ISO, "Xen copy_std_request (purpose of the shadow)", ("1.4", "1.5", "1.7"), ("R3", "R15", "R22"),
         needs="the accesses of EL2 (sense reads)"),
    Rule(R.FETCH_2, "No byte of guest memory is read or written but those that the call needs",
         _ISO, "Xen copy_std_request, copy_std_request_back, handle_rpc_cmd", ("1.4", "1.5", "1.6", "1.7"),
         ("R3", "R15"), needs="the accesses of EL2 (sense reads)"),
    Rule(R.TIME_1, "The hypervisor is busy with a call for a bounded number of instructions at once",
         _AVAIL, "review", ("1.8",), ("R7",), needs="the instructions of EL2 (sense time)"),
    # Isolation
    Rule(R.ISO_1, "No address of the host is in a register or page a guest can read",
         _ISO, "Xen copy_std_request (purpose of the shadow)", ("1.4", "1.6"), ("R10", "R22")),
    # Life of a domain
    Rule(R.LIFE_1, "VM_CREATED carries the domain's client id in x1 and zeros after it, once per domain",
         _ISO, "optee_smc.h: VM_CREATED; Xen optee_domain_init", ("1.2", "1.9"), ("R11",)),
    Rule(R.LIFE_2,
         "VM_DESTROYED carries the client id in x1 and zeros after it, exactly once before the "
         "domain is gone",
         _ISO, "optee_smc.h: VM_DESTROYED; Xen optee_relinquish_resources", ("1.9",), ("R1", "R21")),
    Rule(R.LIFE_3, "No call with a client id after its VM_DESTROYED",
         _ISO, "optee_smc.h: VM_DESTROYED", ("1.9",), ("R21",)),
    Rule(R.LIFE_4, "A destroyed domain leaves no page of the hypervisor and no page reference behind",
         _AVAIL, "Xen optee_relinquish_resources",
         ("1.9",), ("R1", "R18", "R21"), needs="DomainDestroyed.leaked_pages or .zombie"),
    Rule(R.LIFE_5, "A domain OP-TEE refuses is not created",
         _CORR, "Xen optee_domain_init", ("1.9",), ("R20",)),
    Rule(R.LIFE_6, "The hypervisor's probe calls carry zeros in x1..x7",
         _ABI, "optee_smc.h: a7; Xen optee_probe", ("1.2",), ()),
    Rule(R.LIFE_7, "Nothing a guest does brings the hypervisor down",
         _AVAIL, "review", ("1.9",), ("R2",), needs="End.board_alive"),
    Rule(R.LIFE_8, "VM_DESTROYED is not sent while a vCPU of the domain is in OP-TEE",
         _ISO, "Xen optee_relinquish_resources (all vCPUs are stopped)", ("1.9",), ("R1",)),
    Rule(R.LIFE_9,
         "OP-TEE is told of a domain only after it gave its id, its threads, and that it knows guests",
         _CORR, "Xen optee_probe", ("1.2", "1.9"), ("R20",)),
    # The hypervisor's own books
    Rule(R.BOOK_1, "The mediator's counters are those of its lists, and no cookie is in a list twice",
         _AVAIL, "Xen struct optee_domain", ("1.8",), ("R4", "R18"), needs=_LISTS),
    Rule(R.BOOK_2, "The buffers a mediator holds for a domain are those OP-TEE may use, page by page",
         _ISO, "Xen allocate_optee_shm_buf, free_optee_shm_buf", ("1.4", "1.6", "1.7"), ("R8", "R18"), needs=_LISTS),
    Rule(R.BOOK_3, "The RPC pages a mediator holds for a domain are those OP-TEE may use",
         _ISO, "Xen allocate_and_pin_shm_rpc, free_shm_rpc", ("1.5", "1.6"), ("R8", "R18"), needs=_LISTS),
    Rule(R.BOOK_4, "The calls a mediator keeps are those that have not ended, in flight only while a vCPU is in it",
         _AVAIL, "Xen allocate_std_call, put_std_call, free_std_call", ("1.4", "1.5"), ("R4", "R12"), needs=_LISTS),
    Rule(R.BOOK_5, "When OP-TEE is told that a domain is gone, the mediator holds nothing for it any more",
         _AVAIL, "Xen optee_relinquish_resources", ("1.9",), ("R1", "R21"), needs=_LISTS),
    Rule(R.BOOK_6, "What OP-TEE has in its list of a domain's shared memory, the mediator holds for it, frame by frame",
         _ISO, "OP-TEE reg_shm_list; Xen struct optee_domain", ("1.4", "1.5", "1.6"), ("R8",),
         needs="El3Return.partition"),
    Rule(R.REF_1, "A guest's page is pinned once for each buffer and RPC page that names it",
         _ISO, "Xen get_domain_ram_page, put_page", ("1.5", "1.7"), ("R8", "R18"), needs=_LISTS),
    Rule(R.REF_2, "A page that a call named and no list names any more has the references it had before",
         _AVAIL, "Xen get_page, put_page", ("1.4", "1.7", "1.9"), ("R8", "R18"), needs=_LISTS),
    Rule(R.HEAP_1, "A call, refused or not, takes no more of the hypervisor's memory than its lists account for",
         _AVAIL, "Xen alloc_domheap_pages, xzalloc", ("1.4", "1.5", "1.8"), ("R4", "R18"), needs=_LISTS),
    Rule(R.HEAP_2, "A domain's end gives back all memory that the mediator took for it",
         _AVAIL, "Xen optee_relinquish_resources", ("1.9",), ("R1", "R21"), needs=_LISTS),
    # Not observable from outside
    Rule(R.CODE_1, "State and locks are per domain; load of one domain does not hold up another",
         _AVAIL, "review", ("1.8",), ("R5",),
         unobservable="locks leave no mark on the SMC interface; counters per domain are checked by "
         "STD-1, MEM-6, MEM-7"),
    Rule(R.CODE_2, "The time spent in the mediator per call is bounded",
         _AVAIL, "review", ("1.8",), ("R7",),
         unobservable="a processor's time is not in a trace; instructions are, and TIME-1 bounds them"),
    Rule(R.CODE_3, "Guest memory is accessed through the hypervisor's helpers only",
         _CODE, "review", (), ("R9", "R15", "R16"),
         unobservable="a property of the source; its effects are checked by STD-2, MEM-3, STD-10"),
    Rule(R.CODE_4, "Unused ids are named constants",
         _CODE, "review", (), ("R13",),
         unobservable="a property of the source, and obsolete: the list of calls is per domain"),
    Rule(R.CODE_5, "No guest page stays mapped while the guest runs",
         _CODE, "review", (), ("R14",),
         unobservable="the hypervisor's own page tables are not part of the trace; results rest on "
         "STD-6 and STD-7"),
)
# fmt: on

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _ROWS}
"""All rules by id, in the order of the dispatch."""

ABOUT_BOOKS = frozenset(rule for rule in RuleId if rule.startswith(("BOOK-", "REF-", "HEAP-")))
"""Rules about the hypervisor's own books."""

if list(RULES) != list(RuleId) or len(_ROWS) != len(RuleId):
    raise ValueError("the table of rules and RuleId name different rules, or in different order")
