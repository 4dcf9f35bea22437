# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast calls (optee.c: optee_handle_call(), handle_exchange_capabilities())."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.events import Registers
from mediator_ref.rules import RuleId
from mediator_ref.spec.outcome import FastReturn, Forward, Refuse

_OK = int(abi.SmcReturn.OK)


def handle_calls_count() -> Refuse:
    """optee.c: optee_handle_call(), case OPTEE_SMC_CALLS_COUNT."""
    return Refuse(RuleId.FAST_3, abi.OPTEE_MEDIATOR_SMC_COUNT)


def handle_get_shm_config() -> Refuse:
    """optee.c: optee_handle_call(), case OPTEE_SMC_GET_SHM_CONFIG: no static shared memory for guests."""
    return Refuse(RuleId.FAST_3, abi.SmcReturn.ENOTAVAIL)


def forward_fast_call(fid: int) -> Forward:
    """optee.c: optee_handle_call(), the functions passed on as they are: no argument of the guest's reaches OP-TEE."""
    return Forward((fid, 0, 0, 0, 0, 0, 0))


def forward_fast_call_return(function: abi.SmcFunction, res: Registers) -> FastReturn:
    """optee.c: optee_handle_call(), after the SMC of a function passed on. The guest gets the documented registers."""
    written = function.writes if res[0] == _OK else function.always
    return FastReturn(RuleId.FAST_2, res[: len(written)])


def handle_disable_shm_cache_return(res: Registers) -> int | None:
    """optee.c: optee_handle_call(), case OPTEE_SMC_DISABLE_SHM_CACHE: cookie of the RPC page OP-TEE gives back."""
    return abi.pair(res[1], res[2]) if res[0] == _OK else None


def handle_exchange_capabilities(regs: Registers) -> Forward:
    """optee.c: handle_exchange_capabilities(), up to the SMC: unknown capabilities of the guest are cleared."""
    return Forward((abi.EXCHANGE_CAPABILITIES, regs[1] & abi.NSEC_CAPS_FORWARDED, 0, 0, 0, 0, 0))


def handle_exchange_capabilities_return(res: Registers) -> FastReturn:
    """optee.c: handle_exchange_capabilities(), after the SMC."""
    if res[0] != _OK:
        return FastReturn(RuleId.CAPS_2, res[:1])
    caps = res[1] & abi.SEC_CAPS_OFFERED
    if not caps & abi.SEC_CAP_DYNAMIC_SHM:
        return FastReturn(RuleId.CAPS_2, (abi.SmcReturn.ENOTAVAIL,))
    return FastReturn(RuleId.CAPS_2, (_OK, caps))
