"""The rules: what a mediator has to do, one line each, with where it is written and what its violation means.

A rule's id never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """What a violation costs."""

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

    id: str
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

# fmt: off
_ROWS = (
    # Entry and dispatch
    Rule("DISP-1", "A call with a non-zero immediate gets an undefined-instruction exception",
         _ABI, "SMCCC 2.9; Xen vsmc.c vsmccc_handle_call", ("1.1",), ()),
    Rule("DISP-2", "A function that is not offered to guests is answered x0 = -1 and never reaches EL3",
         _ISO, "SMCCC 5.2; Xen optee_handle_call", ("1.1", "1.2"), ("R6",)),
    Rule("DISP-3", "An SMC64 function called by a 32-bit domain is answered x0 = -1",
         _ABI, "SMCCC 2.6; Xen vsmccc_handle_call", ("1.1",), ()),
    Rule("DISP-4", "A domain without a mediator is answered x0 = -1 and never reaches EL3",
         _ISO, "Xen optee_handle_call", ("1.1", "1.9"), ("R6",)),
    Rule("DISP-5",
         "Every call to the trusted OS answers to one guest call or is one of the hypervisor's own",
         _ISO, "Xen optee.c", ("1.2",), ("R6",)),
    Rule("REGS-1", "Registers a function does not define are preserved; x4..x17 always",
         _ISO, "optee_smc.h; SMCCC 3.1", ("1.1", "1.2"), ("R10",)),
    Rule("CID-1", "x7 at EL3 is the domain's id plus one, whatever the guest put there",
         _ISO, "optee_smc.h: a7 Hypervisor Client ID register; Xen OPTEE_CLIENT_ID", ("1.2",), ("R11",)),
    # Fast calls
    Rule("FAST-1", "A forwarded fast call reaches EL3 with its function id and x1..x6 = 0",
         _ISO, "Xen optee_handle_call", ("1.2",), ("R6",)),
    Rule("FAST-2", "A forwarded fast call gives back exactly the documented registers",
         _ABI, "optee_smc.h", ("1.2",), ("R10",)),
    Rule("FAST-3", "CALLS_COUNT and GET_SHM_CONFIG are answered by the mediator itself",
         _ABI, "Xen optee_handle_call", ("1.2",), ()),
    Rule("CAPS-1", "Of the guest's capabilities only UNIPROCESSOR is passed on",
         _CORR, "Xen handle_exchange_capabilities", ("1.2", "1.3"), ("R6",)),
    Rule("CAPS-2",
         "A guest sees only UNREGISTERED_SHM, DYNAMIC_SHM and MEMREF_NULL, and nothing without "
         "DYNAMIC_SHM",
         _ISO, "Xen handle_exchange_capabilities", ("1.3",), ("R6",)),
    Rule("CACHE-1",
         "A cookie given back by DISABLE_SHM_CACHE or RPC FREE is released and may be used again",
         _CORR, "optee_smc.h: DISABLE_SHM_CACHE", ("1.2", "1.6"), ("R18",)),
    # Standard calls
    Rule("STD-1",
         "A domain runs as many standard calls at once as OP-TEE has threads, the next gets "
         "ETHREAD_LIMIT",
         _AVAIL, "Xen allocate_std_call", ("1.4", "1.8"), ("R4",)),
    Rule("STD-2", "An argument address that is not a page of the domain's RAM gets EBADADDR",
         _ISO, "Xen copy_std_request", ("1.4",), ("R3", "R15")),
    Rule("STD-3",
         "A message whose parameters do not fit the page gets x0 = 0, BAD_PARAMETERS, origin COMMS",
         _CORR, "Xen handle_std_call", ("1.4", "1.8"), ("R3",)),
    Rule("STD-4", "A command other than the six mediated ones gets EBADCMD and the page stays as it is",
         _ISO, "Xen handle_std_call", ("1.4",), ("R6",)),
    Rule("STD-5", "CALL_WITH_ARG reaches EL3 with the shadow page in x1:x2, x3 = SHM_CACHED, x4..x6 = 0",
         _ISO, "Xen do_call_with_arg", ("1.2", "1.4"), ()),
    Rule("STD-6",
         "The shadow argument is the guest's page as it was at the trap, with only buffer "
         "addresses replaced",
         _ISO, "Xen copy_std_request, translate_params", ("1.4", "1.7"), ("R3", "R22")),
    Rule("STD-7",
         "A shadow page is the hypervisor's own: no page of a guest, no shadow page of another "
         "live call",
         _ISO, "Xen copy_std_request", ("1.4", "1.5"), ("R14", "R22")),
    Rule("STD-8", "A completed call gives back OP-TEE's x0",
         _ABI, "optee_smc.h", ("1.4",), ()),
    Rule("STD-9", "A completed call writes back ret, ret_origin, session and the outputs, and nothing else",
         _ISO, "Xen copy_std_request_back", ("1.4",), ("R10", "R15", "R22")),
    Rule("STD-10", "Results that cannot be written back give x0 = EBADADDR",
         _CORR, "Xen copy_std_request_back", ("1.4",), ("R15",)),
    # Memory parameters
    Rule("MEM-1", "A buffer that breaks no limit is accepted",
         _CORR, "Xen translate_params", ("1.4", "1.7"), ("R18",)),
    Rule("MEM-2", "A shadow page list names exactly the frames behind the guest's list; the offset is kept",
         _ISO, "optee_msg.h: OPTEE_MSG_ATTR_NONCONTIG; Xen translate_noncontig", ("1.7",), ("R8", "R19")),
    Rule("MEM-3", "A buffer with a page that is not the domain's own writable RAM gets BAD_PARAMETERS",
         _ISO, "Xen translate_noncontig, get_domain_ram_page", ("1.4", "1.7"), ("R8",)),
    Rule("MEM-4", "A contiguous buffer given by address gets BAD_PARAMETERS",
         _ISO, "Xen translate_params", ("1.4", "1.7"), ("R3",)),
    Rule("MEM-5", "A buffer of more than 129 pages gets OUT_OF_MEMORY, however its size and offset add up",
         _AVAIL, "Xen MAX_SHM_BUFFER_PG", ("1.7", "1.8"), ("R7", "R17")),
    Rule("MEM-6", "A domain's 17th buffer gets OUT_OF_MEMORY",
         _AVAIL, "Xen MAX_SHM_BUFFER_COUNT", ("1.7", "1.8"), ("R4",)),
    Rule("MEM-7", "A domain that shares too many pages gets OUT_OF_MEMORY",
         _AVAIL, "Xen MAX_TOTAL_SMH_BUF_PG", ("1.7", "1.8"), ("R4", "R18")),
    Rule("MEM-8", "A cookie that names a live buffer is refused with BAD_PARAMETERS",
         _ISO, "Xen allocate_optee_shm_buf", ("1.7",), ("R8",)),
    Rule("MEM-9", "A NULL buffer is passed on as it is",
         _CORR, "optee_smc.h: MEMREF_NULL; Xen translate_noncontig", ("1.7",), ()),
    Rule("MEM-10", "A page OP-TEE may use does not leave the domain",
         _ISO, "Xen get_domain_ram_page", ("1.7",), ("R8",), needs="FrameReleased events"),
    # RPC
    Rule("RPC-1", "A suspended call gives the guest OP-TEE's x0..x3",
         _ABI, "optee_smc.h: OPTEE_SMC_RETURN_IS_RPC", ("1.6",), ("R10",)),
    Rule("RPC-2", "An offered RPC page is replaced by a shadow page, or by 0 when it cannot be used",
         _ISO, "Xen handle_rpc_func_alloc", ("1.5",), ("R8", "R22")),
    Rule("RPC-3", "A request is written to the guest's RPC page, header and parameters and no byte more",
         _CORR, "Xen handle_rpc_return", ("1.6",), ("R22",)),
    Rule("RPC-4", "The guest's reply is copied into the shadow, header and parameters and no byte more",
         _CORR, "Xen handle_rpc_cmd", ("1.5",), ("R22",)),
    Rule("RPC-5", "Resuming a call that is not suspended gets ERESUME and never reaches EL3",
         _ISO, "Xen get_std_call", ("1.5",), ("R12",)),
    Rule("RPC-6", "A call is resumed with the registers its kind of RPC defines",
         _ABI, "optee_smc.h: RETURN_FROM_RPC; Xen handle_rpc", ("1.5",), ()),
    Rule("RPC-7", "A reply is taken from the page of the request, whatever the guest leaves in x1 and x2",
         _AVAIL, "optee_smc.h: RPC_FUNC_CMD, a1-2 not used", ("1.5",), ("R2",)),
    Rule("RPC-8", "No address in the reply to SHM_ALLOC reaches OP-TEE untranslated",
         _ISO, "Xen handle_rpc_cmd_alloc", ("1.6", "1.7"), ("R8", "R22")),
    Rule("RPC-9", "When an allocated buffer cannot be shared the mediator asks the guest to free it",
         _CORR, "Xen issue_rpc_cmd_free", ("1.6",), ("R18",)),
    Rule("RPC-10", "After that request OP-TEE gets ret = GENERIC and no parameters",
         _CORR, "Xen handle_xen_rpc_return", ("1.6",), ()),
    Rule("RPC-11", "When a request cannot be delivered OP-TEE is resumed with CALL_RETURN_FROM_RPC",
         _CORR, "Xen do_call_with_arg", ("1.6",), ("R2",)),
    Rule("RPC-12", "A reply that cannot be read or does not fit gives OP-TEE ret = GENERIC",
         _CORR, "Xen handle_rpc_cmd", ("1.5",), ("R3",)),
    Rule("RPC-13", "Turning a page down does not cost another call the RPC page of the same cookie",
         _ISO, "optee_smc.h: RPC_FUNC_FREE; OP-TEE thread_rpc_alloc_arg", ("1.5", "1.6"), ("R8", "R12")),
    # Isolation
    Rule("ISO-1", "No address of the host is in a register or page a guest can read",
         _ISO, "Xen copy_std_request (purpose of the shadow)", ("1.4", "1.6"), ("R10", "R22")),
    # Life of a domain
    Rule("LIFE-1", "VM_CREATED carries the domain's client id in x1 and zeros after it, once per domain",
         _ISO, "optee_smc.h: VM_CREATED; Xen optee_domain_init", ("1.2", "1.9"), ("R11",)),
    Rule("LIFE-2",
         "VM_DESTROYED carries the client id in x1 and zeros after it, exactly once before the "
         "domain is gone",
         _ISO, "optee_smc.h: VM_DESTROYED; Xen optee_relinquish_resources", ("1.9",), ("R1", "R21")),
    Rule("LIFE-3", "No call with a client id after its VM_DESTROYED",
         _ISO, "optee_smc.h: VM_DESTROYED", ("1.9",), ("R21",)),
    Rule("LIFE-4", "A destroyed domain leaves no page of the hypervisor and no page reference behind",
         _AVAIL, "Xen optee_relinquish_resources",
         ("1.9",), ("R1", "R18", "R21"), needs="DomainDestroyed.leaked_pages or .zombie"),
    Rule("LIFE-5", "A domain OP-TEE refuses is not created",
         _CORR, "Xen optee_domain_init", ("1.9",), ("R20",)),
    Rule("LIFE-6", "The hypervisor's probe calls carry zeros in x1..x7",
         _ABI, "optee_smc.h: a7; Xen optee_probe", ("1.2",), ()),
    Rule("LIFE-7", "Nothing a guest does brings the hypervisor down",
         _AVAIL, "review", ("1.9",), ("R2",), needs="End.board_alive"),
    Rule("LIFE-8", "VM_DESTROYED is not sent while a vCPU of the domain is in OP-TEE",
         _ISO, "Xen optee_relinquish_resources (all vCPUs are stopped)", ("1.9",), ("R1",)),
    # Not observable from outside
    Rule("CODE-1", "State and locks are per domain; load of one domain does not hold up another",
         _AVAIL, "review", ("1.8",), ("R5",),
         unobservable="locks leave no mark on the SMC interface; counters per domain are checked by "
         "STD-1, MEM-6, MEM-7"),
    Rule("CODE-2", "The time spent in the mediator per call is bounded",
         _AVAIL, "review", ("1.8",), ("R7",),
         unobservable="events carry no time; the size limits that bound it are checked by STD-3, "
         "MEM-5, MEM-6"),
    Rule("CODE-3", "Guest memory is accessed through the hypervisor's helpers only",
         _CODE, "review", (), ("R9", "R15", "R16"),
         unobservable="a property of the source; its effects are checked by STD-2, MEM-3, STD-10"),
    Rule("CODE-4", "Unused ids are named constants",
         _CODE, "review", (), ("R13",),
         unobservable="a property of the source, and obsolete: the list of calls is per domain"),
    Rule("CODE-5", "No guest page stays mapped while the guest runs",
         _CODE, "review", (), ("R14",),
         unobservable="the hypervisor's own page tables are not part of the trace; results rest on "
         "STD-6 and STD-7"),
)
# fmt: on

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _ROWS}
"""All rules by id, in the order of the dispatch."""
