# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE returned from a standard call (optee.c: copy_std_request_back(), free_shm_buffers(), handle_rpc_return(),
do_call_with_arg())."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mediator_ref import abi
from mediator_ref.domain import Domain, ShmRpc, StdCall
from mediator_ref.events import Registers
from mediator_ref.limits import Limits
from mediator_ref.spec.guest_memory import GuestMemory, is_accessible, is_writable
from mediator_ref.spec.outcome import Complete, Deliver, Foreign, PageWrite, Patch, Restart, Unknown
from mediator_ref.spec.std_call import params_of

_CMD, _OK = int(abi.RpcFunc.CMD), int(abi.SmcReturn.OK)
_REGISTER, _UNREGISTER = int(abi.MsgCmd.REGISTER_SHM), int(abi.MsgCmd.UNREGISTER_SHM)
_RET, _ORIGIN, _SESSION = (abi.ARG_FIELDS[name] for name in ("ret", "ret_origin", "session"))

RPC_SHADOW_NOT_OBSERVED = "the RPC shadow was not observed when OP-TEE returned"

Shadow = Mapping[int, bytes]
"""Pages of the hypervisor by address, as OP-TEE left them; one that was not observed is missing."""


def find_shm_rpc(domain: Domain, cookie: int) -> ShmRpc | None:
    """optee.c: find_shm_rpc()."""
    return domain.rpcs.get(cookie)


def is_too_long(message: bytes) -> bool:
    """Whether a message says that it has more parameters than its page holds."""
    return bool(abi.HEADER.unpack_from(message)[7] > abi.MAX_NUM_PARAMS)


def copy_std_request_back(ipa: int, after: bytes, params: list[abi.Param]) -> PageWrite:
    """optee.c: copy_std_request_back(): ret, ret_origin, session, and by type the outputs; ``after`` is the shadow.

    ``params`` are those that were handed over: what OP-TEE may have made of them has no say in what is written.
    """
    patches: list[Patch] = [(at, after[at : at + 4]) for at in (_RET, _ORIGIN, _SESSION)]
    for index, param in enumerate(params):
        kind = param.attr & abi.ATTR_TYPE_MASK
        at = abi.arg_size(index)
        if kind in abi.MEMREF_OUT_TYPES:
            patches.append((at + 16, after[at + 16 : at + 24]))
        elif kind in abi.VALUE_OUT_TYPES:
            patches.append((at + 8, after[at + 8 : at + 32]))
    return PageWrite(ipa, patches, abi.arg_size(len(params)))


def results(xen_arg: bytes) -> list[tuple[int, int]]:
    """Parts of a shadow argument, by offset and length, that OP-TEE may change: results, by the types at hand-over.

    Only OPEN_SESSION has a session among its results.
    """
    found = [(_RET, 8)]
    if abi.U32_AT.unpack_from(xen_arg)[0] == abi.MsgCmd.OPEN_SESSION:
        found.append((_SESSION, 4))
    for index, param in enumerate(params_of(xen_arg)):
        at = abi.arg_size(index)
        if param.type in abi.MEMREF_OUT_TYPES:
            found.append((at + 16, 8))
        elif param.type in abi.VALUE_OUT_TYPES:
            found.append((at + 8, 24))
    return found


def copy_std_request_back_x0(x0: int, *, writable: bool) -> int:
    """optee.c: copy_std_request_back(), the x0 of the guest: results that cannot be written are no success."""
    return x0 if writable else abi.SmcReturn.EBADADDR


def free_shm_buffers(call: StdCall, x0: int, ret: int, params: list[abi.Param]) -> set[int]:
    """optee.c: free_shm_buffers(), called by do_call_with_arg(): cookies of the buffers that end with a call.

    Those translated for the call, unless OP-TEE registered them; and the one it unregistered. ``ret`` and ``params``
    are those of the shadow argument.
    """
    success = x0 == _OK and ret == abi.Tee.SUCCESS
    if call.cmd == _REGISTER and success:
        return set()
    cookies = set(call.cookies)
    if call.cmd == _UNREGISTER and success:
        cookies.add(params[0].c if params else 0)
    return cookies


def handle_rpc_return(
    domain: Domain, res: Registers, shadow: Shadow, guest: Sequence[GuestMemory], limits: Limits
) -> Deliver | Restart:
    """optee.c: handle_rpc_return(). ``guest``: views of guest memory, the latest first."""
    deliver = Deliver(res[:4])
    if res[0] & 0xFFFF != _CMD:
        return deliver
    rpc = find_shm_rpc(domain, abi.pair(res[1], res[2]))
    if rpc is None:
        if not domain.history_unknown:
            return Restart(abi.RETURN_FROM_RPC, res[3])
        deliver.page = Unknown(domain.history_unknown)
        return deliver
    deliver.writable = (is_accessible if limits.writes_read_only else is_writable)(rpc.ipa, guest)
    if deliver.writable is False:
        return Restart(abi.RETURN_FROM_RPC, res[3])
    request = shadow.get(rpc.ma) if rpc.ma is not None else None
    if request is None:
        deliver.page = Unknown(RPC_SHADOW_NOT_OBSERVED)
        return deliver
    if is_too_long(request):
        return Restart(abi.RETURN_FROM_RPC, res[3])
    deliver.params = params_of(request)
    size = abi.arg_size(len(deliver.params))
    deliver.page = PageWrite(rpc.ipa, [(0, request[:size])], size)
    return deliver


def free_shm_rpc(domain: Domain, call: StdCall, cookie: int) -> ShmRpc | None:
    """optee.c: free_shm_rpc(), called by handle_rpc_return(): the RPC page that ends with OP-TEE's FREE.

    OP-TEE frees a page it was never given when the mediator rejected it; another call may use one of the same cookie.
    """
    return None if call.rejected == cookie else domain.rpcs.get(cookie)


def free_optee_shm_buf(domain: Domain, cookie: int) -> set[int]:
    """optee.c: free_optee_shm_buf(), called by handle_rpc_return(): only a buffer given in answer to SHM_ALLOC ends."""
    buffer = domain.buffers.get(cookie)
    return {cookie} if buffer is not None and buffer.rpc else set()


def do_call_with_arg(
    domain: Domain, call: StdCall, res: Registers, shadow: Shadow, guest: Sequence[GuestMemory], limits: Limits
) -> Complete | Deliver | Restart | Foreign:
    """optee.c: do_call_with_arg(), after the SMC: an RPC for the guest, or results for the guest's message."""
    if not abi.is_answer(res[0]):
        return Foreign(res[0])
    if abi.is_rpc(res[0]):
        return handle_rpc_return(domain, res, shadow, guest, limits)
    after = shadow.get(call.ma) if call.ma is not None else None
    page: PageWrite | Unknown = Unknown("the shadow argument was not observed when OP-TEE returned")
    params: list[abi.Param] = []
    if after is not None and call.arg_ipa is not None:
        params = params_of(after if call.xen_arg is None else call.xen_arg)
        page = copy_std_request_back(call.arg_ipa, after, params)
    return Complete(res[0], is_writable(call.arg_ipa, guest), page, params)
