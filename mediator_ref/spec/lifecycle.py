# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of the hypervisor's own (optee.c: optee_probe(), optee_domain_init(), optee_relinquish_resources()).

Registers are x0..x7: the client id in x7 is 0, that of the hypervisor itself.
"""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.events import Registers

_ZEROS = (0, 0, 0, 0, 0, 0)


def optee_client_id(domid: int) -> int:
    """optee.c: OPTEE_CLIENT_ID(): x7 of a domain at EL3."""
    return domid + 1


def optee_probe(fid: int) -> Registers:
    """optee.c: optee_probe(): CALLS_UID, GET_THREAD_COUNT and VM_DESTROYED without any argument."""
    return (fid, 0, *_ZEROS)


def optee_probe_return(fid: int, res: Registers) -> int | None:
    """optee.c: optee_probe(), max_optee_threads: the number of threads, when OP-TEE was asked for it and told."""
    return res[1] if fid == abi.GET_THREAD_COUNT and res[0] == abi.SmcReturn.OK else None


def optee_probe_answer(fid: int, res: Registers) -> bool:
    """optee.c: optee_probe(), each answer: OP-TEE's UID, a number of threads, and that it knows guests."""
    if fid == abi.CALLS_UID:
        return tuple(x & abi.U32 for x in res[:4]) == abi.OPTEE_MSG_UID
    if fid == abi.GET_THREAD_COUNT:
        return res[0] == abi.SmcReturn.OK
    return res[0] & abi.U32 != abi.SMCCC_UNKNOWN_FUNCTION & abi.U32


def optee_domain_init(domid: int) -> Registers:
    """optee.c: optee_domain_init()."""
    return (abi.VM_CREATED, optee_client_id(domid), *_ZEROS)


def optee_domain_init_return(res: Registers) -> bool:
    """optee.c: optee_domain_init(), after the SMC: whether the domain may be created."""
    return res[0] == abi.SmcReturn.OK


def optee_relinquish_resources(domid: int) -> Registers:
    """optee.c: optee_relinquish_resources(), once all calls, RPC pages and buffers of the domain are released."""
    return (abi.VM_DESTROYED, optee_client_id(domid), *_ZEROS)
