"""Domains come and go; calls the hypervisor makes on its own behalf (Xen ``optee_probe``, ``optee_domain_init``,
``optee_relinquish_resources``)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.check import client_id
from mediator_ref.describe import describe_call
from mediator_ref.events import DomainCreated, DomainDestroyed, El3Call, El3Return, End, FrameReleased
from mediator_ref.state import Domain, State
from mediator_ref.verdict import Difference


def hypervisor_call(state: State, event: El3Call) -> None:
    """A call to the trusted OS with no guest call behind it."""
    fid = abi.fid_of(event.regs[0])
    client = event.regs[1]
    if fid == abi.VM_CREATED:
        _vm_created(state, event, client)
    elif fid == abi.VM_DESTROYED and client:
        _vm_destroyed(state, event, client)
    elif fid in abi.PROBE_FIDS or fid == abi.VM_DESTROYED:
        _zeros(state, event, "LIFE-6", 1, "D10")
    elif state.mid_stream:
        state.unchecked("DISP-5", state.mid_stream, event)
    else:
        state.fail("DISP-5", event, f"no guest call stands behind {describe_call(event.regs)}")
    state.hypervisor_calls[(event.domid, event.vcpu)] = (fid, client, event.seq)


def _zeros(state: State, event: El3Call, rule: str, first: int, deviation: str | None = None) -> bool:
    wrong = [Difference(f"x{i}", "0", f"{event.regs[i]:#x}") for i in range(first, 8) if event.regs[i]]
    if wrong:
        state.fail(rule, event, describe_call(event.regs), *wrong, deviation=deviation)
        return False
    state.ok(rule)
    if deviation is not None:
        state.absent(deviation)
    return True


def _vm_created(state: State, event: El3Call, client: int) -> None:
    if client == 0 or client > abi.U32:
        state.fail("LIFE-1", event, "not a client id", Difference("x1", "domain id + 1", f"{client:#x}"))
        return
    domid = client - 1
    known = state.domains.get(domid)
    if known is not None and known.created and not known.destroyed and not known.refused:
        state.fail("LIFE-1", event, f"domain {domid} was created already")
        return
    state.domains[domid] = Domain(domid)
    _zeros(state, event, "LIFE-1", 2)


def _vm_destroyed(state: State, event: El3Call, client: int) -> None:
    domid = client - 1
    domain = state.domains.get(domid)
    if domain is None or (not domain.created and not domain.partial):
        if state.mid_stream:
            state.domain(domid).destroyed = True
            _zeros(state, event, "LIFE-2", 2)
        else:
            state.fail("LIFE-2", event, f"client id {client} was never created")
        return
    if domain.destroyed:
        state.fail("LIFE-2", event, f"a second VM_DESTROYED for domain {domid}")
        return
    inside = [p.event.vcpu for p in state.pending.values() if p.domain is domain and p.phase == "optee"]
    if inside:
        state.fail("LIFE-8", event, f"vCPU {inside[0]} of domain {domid} is in OP-TEE")
    else:
        state.ok("LIFE-8")
    _zeros(state, event, "LIFE-2", 2)
    domain.destroyed = True
    forget(state, domain)


def forget(state: State, domain: Domain) -> None:
    """A domain's calls, buffers and pages are gone."""
    for ma in [ma for ma, owner in state.shadow_pages.items() if owner == domain.domid]:
        del state.shadow_pages[ma]
    domain.calls.clear()
    domain.running.clear()
    domain.rpcs.clear()
    domain.buffers.clear()
    domain.returned_cookies.clear()
    domain.blame.clear()
    domain.lost_rpcs.clear()
    domain.doubled_rpcs.clear()
    domain.known = None
    domain.lost_calls = 0


def hypervisor_return(state: State, event: El3Return) -> None:
    """OP-TEE answered a call of the hypervisor's own."""
    made = state.hypervisor_calls.pop((event.domid, event.vcpu), None)
    if made is None:
        return
    fid, client, _ = made
    success = event.regs[0] == abi.SmcReturn.OK
    if fid == abi.GET_THREAD_COUNT and success and state.limits.threads is None:
        state.threads = event.regs[1]
    elif fid == abi.VM_CREATED and 0 < client <= abi.U32:
        domain = state.domain(client - 1)
        domain.created = domain.tee = success
        domain.refused = not success


def domain_created(state: State, event: DomainCreated) -> None:
    """The toolstack has a domain now."""
    known = state.domains.get(event.domid)
    if known is not None and known.destroyed:
        known = None
        del state.domains[event.domid]
    if known is not None and known.refused and event.tee is not False:
        state.fail("LIFE-5", event, "OP-TEE refused the domain, and it was created")
    elif known is not None and known.created:
        state.ok("LIFE-5")
    domain = known if known is not None else state.domain(event.domid)
    if domain.created:
        domain.partial = ""  # otherwise its VM_CREATED may have gone unseen before the trace began
    if event.tee is False:
        domain.tee = False


def domain_destroyed(state: State, event: DomainDestroyed) -> None:
    """The last of a domain."""
    domain = state.domains.pop(event.domid, None)
    if domain is not None and domain.created and not domain.destroyed:
        state.fail("LIFE-2", event, f"OP-TEE was never told (client id {client_id(event.domid)})")
    if domain is not None:
        if domain.destroyed and not domain.called_after_death:
            state.ok("LIFE-3")
        forget(state, domain)
    for key in [key for key, p in state.pending.items() if p.event.domid == event.domid]:
        del state.pending[key]
    if event.leaked_pages is None and event.zombie is None:
        state.unchecked("LIFE-4", "what the domain left behind was not measured", event)
    elif event.zombie or (event.leaked_pages or 0) > 0:
        state.fail(
            "LIFE-4",
            event,
            "the domain left something behind",
            Difference("pages", "0", str(event.leaked_pages)),
            Difference("zombie", "False", str(event.zombie)),
        )
    else:
        state.ok("LIFE-4")


def frame_released(state: State, event: FrameReleased) -> None:
    """MEM-10: a frame leaves its domain."""
    domain = state.domains.get(event.domid)
    if domain is None or event.mfn not in domain.pinned():
        state.ok("MEM-10")
        return
    lost = {domain.blame.get(c) for c, b in domain.buffers.items() if event.mfn in b.mfns} & {"D2", "D12", "D14"}
    if any(rpc.mfn == event.mfn and rpc.cookie in domain.lost_rpcs for rpc in domain.rpcs.values()):
        lost.add("D13")
    state.fail(
        "MEM-10",
        event,
        "OP-TEE may still use the frame",
        Difference("frame", "kept", f"{event.mfn:#x} released"),
        deviation=next(iter(sorted(filter(None, lost))), None),
    )


def gap(state: State) -> None:
    """Events are missing: nothing that was going on is known any more."""
    # Without the reason: its numbers would let the tally grow with every gap.
    state.mid_stream = "events are missing"
    state.pending.clear()
    state.hypervisor_calls.clear()
    state.shadow_pages.clear()
    for domain in state.domains.values():
        forget(state, domain)
        domain.partial = state.mid_stream
        domain.in_hypervisor = 0
        domain.created = domain.destroyed = domain.refused = False  # it may have died and come again meanwhile
        domain.tee = None


def end(state: State, event: End) -> None:
    """LIFE-7 at the end of a trace."""
    if event.board_alive is None:
        state.unchecked("LIFE-7", "whether the hypervisor still runs was not observed", event)
    elif event.board_alive:
        state.ok("LIFE-7")
    else:
        state.fail("LIFE-7", event, "the hypervisor stopped")
