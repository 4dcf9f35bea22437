"""Buffers coming and going: in what should be held, and in what a mediator with the listed defects holds."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.memory import Translation
from mediator_ref.state import Buffer, Call, Domain, Pending


def blamed(domain: Domain, translation: Translation | None) -> list[str]:
    """Deviations that can explain a refusal (or its absence) for the translation's reason."""
    if translation is None:
        return []
    if translation.rule == "MEM-8":
        cookie = int(translation.reason.split()[1], 16)
        return [domain.blame[cookie]] if cookie in domain.blame else []
    if translation.rule == "MEM-7" and domain.known is not None and domain.known.leaked_pages:
        return ["D3"]
    if translation.rule in ("MEM-6", "MEM-7"):
        return sorted(set(domain.blame.values()))
    return ["D9"] if translation.rule == "MEM-5" and translation.wraps else []


def attributed(domain: Domain, due: Translation | None, known: Translation | None) -> tuple[str, str | None]:
    """Rule and deviation of a message that was decided as a mediator with known defects does, and not as is due."""
    if due is not None and due.wraps and due.rule == "MEM-5":
        return "MEM-5", "D9"
    for translation in (known, due):
        if translation is not None and translation.error:
            names = blamed(domain, translation)
            if names:
                return translation.rule, names[0]
    for translation in (due, known):
        if translation is not None and translation.error:
            return translation.rule, None
    return "MEM-1", None


def hold(domain: Domain, call: Call | None, buffers: dict[int, Buffer | None], cookies: list[int]) -> None:
    """OP-TEE may use these buffers from now on: for this call, or until it asks to free them."""
    found = {buffer.cookie: buffer for buffer in buffers.values() if buffer is not None}
    for cookie in cookies:
        buffer = domain.buffers[cookie] = found.get(cookie, Buffer(cookie, ()))
        buffer.rpc = call is None
        if call is not None:
            call.cookies.append(cookie)


def commit(p: Pending, translation: Translation | None, known: Translation | None, *, temporary: bool = True) -> None:
    """A message reached OP-TEE: its buffers are held, also those that should have been refused.

    ``temporary`` buffers end with the call, others when OP-TEE asks to free them.
    """
    if translation is None:
        return
    domain = p.domain
    if known is not None:
        if known.error:
            domain.known = None
            domain.blame.clear()
        else:
            domain.known = known.ledger
            for cookie in known.cookies:
                domain.blame.pop(cookie, None)
    accepted = translation if known is None or known.error else known
    hold(domain, p.call if temporary else None, accepted.buffers, accepted.cookies)
    settle(domain)


def commit_refused(p: Pending, known: Translation) -> None:
    """A message was refused: a mediator with D3 and D5 keeps a part of it."""
    domain = p.domain
    domain.known = known.ledger
    for cookie in known.cookies:
        if cookie in known.ledger.held and cookie not in domain.buffers:
            domain.blame[cookie] = "D5"
    settle(domain)


def settle(domain: Domain) -> None:
    """Forget the second ledger once it says the same as the first."""
    known = domain.known
    if known is not None and not known.leaked_pages and known.held == domain.ledger().held:
        domain.known = None
        domain.blame.clear()


def release(domain: Domain, due: set[int], done: set[int], deviation: str) -> None:
    """Buffers end: ``due`` are those that should, ``done`` those a mediator with listed defects releases."""
    due &= domain.buffers.keys()
    held = domain.known.held if domain.known is not None else domain.buffers
    done = {cookie for cookie in done if cookie in held}
    if due != done or domain.known is not None:
        known = domain.known_ledger()
        for cookie in done:
            known.held.pop(cookie, None)
            domain.blame.pop(cookie, None)
        for cookie in due ^ done:
            if (cookie in domain.buffers and cookie not in due) or cookie in known.held:
                domain.blame.setdefault(cookie, deviation)
    for cookie in due:
        del domain.buffers[cookie]
    settle(domain)


def released_by_defects(page: bytes, params: list[abi.Param]) -> set[int]:
    """Cookies a mediator with D2 and D12 releases when a call ends: from the shadow as it stands, unasked."""
    cmd = abi.U32_AT.unpack_from(page, abi.ARG_FIELDS["cmd"])[0]
    ret = abi.U32_AT.unpack_from(page, abi.ARG_FIELDS["ret"])[0]
    first: int = abi.PARAM.unpack_from(page, abi.HEADER_SIZE)[3]
    if cmd == abi.MsgCmd.REGISTER_SHM:
        return {first} if ret else set()
    if cmd == abi.MsgCmd.UNREGISTER_SHM:
        return set() if ret else {first}
    return {q.c for q in params if q.attr & abi.ATTR_TYPE_MASK in abi.TMEM_TYPES}
