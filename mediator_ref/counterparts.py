# SPDX-License-Identifier: GPL-2.0-or-later
"""For every function of Xen's ``arch/arm/tee/optee.c`` its counterpart here, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mediator_ref import abi
from mediator_ref.spec import (
    call_return,
    dispatch,
    fast_call,
    guest_memory,
    lifecycle,
    rpc,
    std_call,
    translate,
)

_RELEASE = "releases Xen's own memory: a leak shows in its books (HEAP-1, HEAP-2, BOOK-5)"
_MAPPING = "maps or unmaps a page of Xen's own: leaves no mark on the SMC interface"
_LOCKING = "state and locks of a call: in flight or not shows in Xen's books (BOOK-4)"

COUNTERPARTS: Mapping[str, Callable[..., Any] | str] = {
    "optee_probe": lifecycle.optee_probe,
    "optee_domain_init": lifecycle.optee_domain_init,
    "regpair_to_uint64": abi.pair,
    "uint64_to_regpair": abi.split,
    "get_domain_ram_page": guest_memory.get_domain_ram_page,
    "allocate_std_call": std_call.allocate_std_call,
    "free_std_call": _RELEASE,
    "map_xen_arg": _MAPPING,
    "unmap_xen_arg": _MAPPING,
    "get_std_call": std_call.get_std_call,
    "put_std_call": _LOCKING,
    "allocate_and_pin_shm_rpc": rpc.allocate_and_pin_shm_rpc,
    "free_shm_rpc": call_return.free_shm_rpc,
    "find_shm_rpc": call_return.find_shm_rpc,
    "allocate_optee_shm_buf": translate.allocate_optee_shm_buf,
    "free_pg_list": _RELEASE,
    "free_optee_shm_buf": call_return.free_optee_shm_buf,
    "free_optee_shm_buf_pg_list": _RELEASE,
    "optee_relinquish_resources": lifecycle.optee_relinquish_resources,
    "get_pages_list_size": "size of an allocation of Xen's own; the pages a guest's buffer has: translate.page_count",
    "translate_noncontig": translate.translate_noncontig,
    "translate_params": translate.translate_params,
    "copy_std_request": std_call.copy_std_request,
    "copy_std_request_back": call_return.copy_std_request_back,
    "free_shm_buffers": call_return.free_shm_buffers,
    "handle_rpc_return": call_return.handle_rpc_return,
    "do_call_with_arg": call_return.do_call_with_arg,
    "handle_std_call": std_call.handle_std_call,
    "issue_rpc_cmd_free": rpc.issue_rpc_cmd_free,
    "handle_xen_rpc_return": rpc.handle_xen_rpc_return,
    "handle_rpc_cmd_alloc": rpc.handle_rpc_cmd_alloc,
    "handle_rpc_cmd": rpc.handle_rpc_cmd,
    "handle_rpc_func_alloc": rpc.handle_rpc_func_alloc,
    "handle_rpc": rpc.handle_rpc,
    "handle_exchange_capabilities": fast_call.handle_exchange_capabilities,
    "optee_handle_call": dispatch.optee_handle_call,
}
"""Python function, or reason, by the name in optee.c, in its order."""
