"""The isolation findings of the list of deviations, as far as the guest's own view shows them.

D1 and D2: the Xen security team is told before details are published.
"""

from __future__ import annotations

import pytest

from framework.guests.probe import Probe
from framework.guests.probe_msg import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_MEMREF_NULL,
    Invoke,
    OpenSession,
    RegisterShm,
    null_tmem,
    tmem,
)
from mediator_ref.abi import Attr, Param, RpcCmd, RpcFunc, Tee

RESERVED_SHM = 0x4200_0000
"""Machine address of OP-TEE's static shared memory, which no guest may use and nobody does: a harmless place."""


@pytest.mark.rule("R8", "R22", "RPC-8", "D1")
def test_d1_contiguous_reply_to_shm_alloc(probe: Probe, deviations) -> None:  # type: ignore[no-untyped-def]
    """A reply to SHM_ALLOC that names an address instead of a page list never reaches OP-TEE."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    cookie = probe.cookie()
    # Every command from here on: one that uses the memory tells that OP-TEE took the address.
    call.answer(Param(Attr.TMEM_OUTPUT, RESERVED_SHM, 4096, cookie), park=[RpcFunc.CMD])
    used = []
    while not call.done:
        request = call.request()
        if request.cmd not in (RpcCmd.SHM_FREE, RpcCmd.SHM_ALLOC):
            used += [param for param in request.params if param.c == cookie]
        call.proceed(RpcFunc.CMD)
    if used:
        deviations.seen(
            "D1", f"OP-TEE uses memory under the cookie of an untranslated reply in {len(used)} parameters"
        )
        return
    assert (call.x0, call.arg.ret != 0) == (0, True)


@pytest.mark.rule("R8", "MEM-4", "MEM-8", "MEM-10", "D2")
def test_d2_a_call_releases_only_its_own_buffers(probe: Probe, deviations) -> None:  # type: ignore[no-untyped-def]
    """A NULL buffer with the cookie of registered memory does not unregister it."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    assert probe.call_with_arg(RegisterShm(tmem(ref=0xC0))).arg.ret == 0
    call = probe.call_with_arg(Invoke(session, PTA_CMD_MEMREF_NULL, [null_tmem(ref=0xC0)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    again = probe.call_with_arg(RegisterShm(tmem(ref=0xC0)))
    assert again.x0 == 0
    if (again.arg.ret, again.arg.ret_origin) != (Tee.BAD_PARAMETERS, 2):
        deviations.seen(
            "D2", "the cookie of memory that OP-TEE still has registered can be registered once more"
        )
        return
