# SPDX-License-Identifier: GPL-2.0-or-later
"""Dispatch of a guest's call (vsmc.c: vsmccc_handle_call(), tee.c: tee_handle_call(), optee.c: optee_handle_call())."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.domain import Domain
from mediator_ref.events import GuestCall
from mediator_ref.limits import Limits
from mediator_ref.rules import RuleId
from mediator_ref.spec.fast_call import (
    forward_fast_call,
    handle_calls_count,
    handle_exchange_capabilities,
    handle_get_shm_config,
)
from mediator_ref.spec.outcome import Expected, Refuse
from mediator_ref.spec.rpc import handle_rpc
from mediator_ref.spec.std_call import handle_std_call

_UNKNOWN = abi.SMCCC_UNKNOWN_FUNCTION
_RETURN_FROM_RPC, _CALL_WITH_ARG, _U32 = abi.RETURN_FROM_RPC, abi.CALL_WITH_ARG, abi.U32


def vsmccc_handle_call(domain: Domain, event: GuestCall, limits: Limits, threads: int | None) -> Expected:
    """vsmc.c: vsmccc_handle_call(), for a function of the trusted owners: imm16, convention, then the mediator."""
    if event.imm:
        return Refuse(RuleId.DISP_1, _UNKNOWN, f"immediate {event.imm:#x}")
    if event.aarch32 and abi.is_smc64(event.regs[0] & abi.U32):
        return Refuse(RuleId.DISP_3, _UNKNOWN)
    return optee_handle_call(domain, event, limits, threads)


def optee_handle_call(domain: Domain, event: GuestCall, limits: Limits, threads: int | None) -> Expected:
    """optee.c: optee_handle_call()."""
    if domain.tee is False:
        return Refuse(RuleId.DISP_4, _UNKNOWN)
    fid = event.regs[0] & _U32
    if fid == _RETURN_FROM_RPC:
        return handle_rpc(domain, event, limits)
    if fid == _CALL_WITH_ARG:
        return handle_std_call(domain, event, limits, threads)
    if fid == abi.EXCHANGE_CAPABILITIES:
        return handle_exchange_capabilities(event.regs)
    if fid == abi.CALLS_COUNT:
        return handle_calls_count()
    if fid == abi.GET_SHM_CONFIG:
        return handle_get_shm_config()
    function = abi.FUNCTIONS.get(fid)
    if function is not None and function.handling is abi.Handling.FORWARD:
        return forward_fast_call(fid)
    return Refuse(RuleId.DISP_2, _UNKNOWN)
