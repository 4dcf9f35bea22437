# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains come and go; calls of the hypervisor's own (optee_probe, optee_domain_init, optee_relinquish_resources)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.books import Lists
from mediator_ref.compare import books
from mediator_ref.describe import describe_call
from mediator_ref.events import (
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    End,
    FrameReleased,
    Gap,
    Registers,
    Start,
)
from mediator_ref.knowledge import BookState, Phase, TrackedDomain
from mediator_ref.rules import RuleId
from mediator_ref.spec.lifecycle import (
    optee_client_id,
    optee_domain_init,
    optee_domain_init_return,
    optee_probe,
    optee_probe_answer,
    optee_probe_return,
    optee_relinquish_resources,
)
from mediator_ref.state import State
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
        _check_arguments(state, event, RuleId.LIFE_6, optee_probe(fid))
    elif state.mid_stream:
        state.unchecked(RuleId.DISP_5, state.mid_stream, event)
    else:
        state.fail(RuleId.DISP_5, event, f"no guest call stands behind {describe_call(event.regs)}")
    state.hypervisor_calls[(event.domid, event.vcpu)] = (fid, client)


def _check_arguments(state: State, event: El3Call, rule: RuleId, expected: Registers) -> bool:
    """Compare x1..x7 of a call of the hypervisor's own."""
    wrong = [
        Difference(f"x{i}", f"{expected[i]}", f"{event.regs[i]:#x}")
        for i in range(1, 8)
        if event.regs[i] != expected[i]
    ]
    if wrong:
        state.fail(rule, event, describe_call(event.regs), *wrong)
        return False
    state.ok(rule)
    return True


def _vm_created(state: State, event: El3Call, client: int) -> None:
    if client == 0 or client > abi.U32:
        difference = Difference("x1", "domain id + 1", f"{client:#x}")
        state.fail(RuleId.LIFE_1, event, "not a client id", difference)
        return
    _check_probed(state, event)
    domid = client - 1
    known = state.domains.get(domid)
    if known is not None and known.created and not known.destroyed and not known.refused:
        state.fail(RuleId.LIFE_1, event, f"domain {domid} was created already")
        return
    domain = state.domains[domid] = TrackedDomain(domid)
    domain.book.lists = Lists()
    _check_arguments(state, event, RuleId.LIFE_1, optee_domain_init(domid))


def _check_probed(state: State, event: El3Call) -> None:
    """LIFE-9: OP-TEE said who it is before it is told of a domain."""
    if state.mid_stream:
        return
    for fid in (*sorted(abi.PROBE_FIDS), abi.VM_DESTROYED):
        answer = state.probed.get(fid)
        if answer is None or not optee_probe_answer(fid, answer):
            name = abi.FUNCTIONS[fid].name
            said = "not asked" if answer is None else f"{answer[0]:#x}"
            difference = Difference(f"answer to {name}", "one of an OP-TEE that knows guests", said)
            state.fail(RuleId.LIFE_9, event, "OP-TEE is told of a domain", difference)
            return
    state.ok(RuleId.LIFE_9)


def _vm_destroyed(state: State, event: El3Call, client: int) -> None:
    domid = client - 1
    domain = state.domains.get(domid)
    if domain is None or (not domain.created and not domain.history_unknown):
        if state.mid_stream:
            state.domain(domid).destroyed = True
            _check_arguments(state, event, RuleId.LIFE_2, optee_relinquish_resources(domid))
        else:
            state.fail(RuleId.LIFE_2, event, f"client id {client} was never created")
        return
    if domain.destroyed:
        state.fail(RuleId.LIFE_2, event, f"a second VM_DESTROYED for domain {domid}")
        return
    inside = [p.event.vcpu for p in state.pending.values() if p.domain is domain and p.phase is Phase.OPTEE]
    if inside:
        state.fail(RuleId.LIFE_8, event, f"vCPU {inside[0]} of domain {domid} is in OP-TEE")
    else:
        state.ok(RuleId.LIFE_8)
    _check_arguments(state, event, RuleId.LIFE_2, optee_relinquish_resources(domid))
    books.vm_destroyed(state, event, domain)
    domain.destroyed = True
    state.assertions |= domain.defects.assertions()
    _forget(state, domain)


def _forget(state: State, domain: TrackedDomain) -> None:
    """A domain's calls, buffers and pages are gone."""
    for ma in [ma for ma, owner in state.shadow_pages.items() if owner == domain.domid]:
        del state.shadow_pages[ma]
    domain.forget()


def hypervisor_return(state: State, event: El3Return) -> None:
    """OP-TEE answered a call of the hypervisor's own."""
    made = state.hypervisor_calls.pop((event.domid, event.vcpu), None)
    if made is None:
        return
    fid, client = made
    if fid in abi.PROBE_FIDS or (fid == abi.VM_DESTROYED and not client):
        state.probed[fid] = event.regs
    threads = optee_probe_return(fid, event.regs)
    if threads is not None and state.limits.threads is None:
        state.threads = threads
    elif fid == abi.VM_CREATED and 0 < client <= abi.U32:
        domain = state.domain(client - 1)
        domain.created = domain.tee = optee_domain_init_return(event.regs)
        domain.refused = not domain.created


def domain_created(state: State, event: DomainCreated) -> None:
    """The toolstack has a domain now."""
    known = state.domains.get(event.domid)
    if known is not None and known.destroyed:
        known = None
        del state.domains[event.domid]
    if known is not None and known.refused and event.tee is not False:
        state.fail(RuleId.LIFE_5, event, "OP-TEE refused the domain, and it was created")
    elif known is not None and known.created:
        state.ok(RuleId.LIFE_5)
    domain = known if known is not None else state.domain(event.domid)
    if domain.created:
        domain.history_unknown = ""  # otherwise its VM_CREATED may have gone unseen before the trace began
    if event.tee is False and not domain.created:
        domain.tee = False


def domain_dying(state: State, event: DomainDying) -> None:
    """The domain is being taken down."""
    domain = state.domains.get(event.domid)
    if domain is not None:
        domain.dying = True
        books.dying(event, domain)


def domain_destroyed(state: State, event: DomainDestroyed) -> None:
    """The last of a domain."""
    domain = state.domains.pop(event.domid, None)
    if domain is not None and domain.created and not domain.destroyed:
        state.fail(RuleId.LIFE_2, event, f"OP-TEE was never told (client id {optee_client_id(event.domid)})")
    if domain is not None:
        books.destroyed(state, event, domain)
        if domain.destroyed and not domain.called_after_death:
            state.ok(RuleId.LIFE_3)
        _forget(state, domain)
    for key in [key for key, pending in state.pending.items() if pending.event.domid == event.domid]:
        del state.pending[key]
    if event.leaked_pages is None and event.zombie is None:
        state.unchecked(RuleId.LIFE_4, "what the domain left behind was not measured", event)
    elif event.zombie or (event.leaked_pages or 0) > 0:
        state.fail(
            RuleId.LIFE_4,
            event,
            "the domain left something behind",
            Difference("pages", "0", str(event.leaked_pages)),
            Difference("zombie", "False", str(event.zombie)),
        )
    else:
        state.ok(RuleId.LIFE_4)


def frame_released(state: State, event: FrameReleased) -> None:
    """MEM-10: a frame leaves its domain."""
    domain = state.domains.get(event.domid)
    if domain is None or event.mfn not in domain.pinned():
        state.ok(RuleId.MEM_10)
        return
    difference = Difference("frame", "kept", f"{event.mfn:#x} released")
    state.fail(RuleId.MEM_10, event, "OP-TEE may still use the frame", difference)


def start(state: State, event: Start) -> None:
    """The trace begins."""
    if event.mid_stream:
        state.mid_stream = "started in the middle"


def gap(state: State, event: Gap) -> None:
    """Events are missing: nothing that was going on is known any more."""
    del event  # its reason has numbers, which would let the tally grow with every gap
    state.mid_stream = "events are missing"
    state.pending.clear()
    state.hypervisor_calls.clear()
    state.shadow_pages.clear()
    for domain in state.domains.values():
        domain.forget()
        domain.book = BookState()
        domain.history_unknown = state.mid_stream
        domain.in_hypervisor = 0
        # It may have died and come again meanwhile.
        domain.created = domain.dying = domain.destroyed = domain.refused = False
        domain.tee = None


def end(state: State, event: End) -> None:
    """LIFE-7 at the end of a trace."""
    for domain in state.domains.values():  # a hypervisor that stops at a domain's end tells OP-TEE nothing any more
        state.assertions |= domain.defects.assertions()
    if state.reads_missing:
        for rule in (RuleId.FETCH_1, RuleId.FETCH_2):
            state.unchecked(rule, "what the mediator reads of guest memory was not observed", event)
    if state.time_missing:
        state.unchecked(RuleId.TIME_1, "how long the mediator takes was not observed", event)
    if event.board_alive is None:
        state.unchecked(RuleId.LIFE_7, "whether the hypervisor still runs was not observed", event)
    elif event.board_alive:
        state.ok(RuleId.LIFE_7)
    else:
        state.fail(RuleId.LIFE_7, event, "the hypervisor stopped")
