# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls folded out of events, and what people see of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.cli import main as cli
from framework.common.errors import UsageError
from framework.trace.calls import Call, fold
from framework.trace.diff import diff
from framework.trace.format import Flag, Kind
from framework.trace.show import Filter, show
from framework.trace.stats import collect, percentile
from mediator_ref import abi
from testcases.unit.trace.samples import Conversation, sample, write


def calls(talk: Conversation) -> list[Call]:
    return [item for item in fold(talk.events()) if isinstance(item, Call)]


def test_a_standard_call_is_one_call_with_its_rpcs_in_order() -> None:
    talk = Conversation()
    talk.standard_call(thread=4)
    (call,) = calls(talk)
    assert call.finished and call.thread == 4 and len(call.exchanges) == 3
    assert [exchange.rpc for exchange in call.exchanges] == [abi.RpcFunc.FOREIGN_INTR, abi.RpcFunc.CMD, None]
    assert call.duration_ns == 110_000
    assert sum(exchange.el3_ns for exchange in call.exchanges) == 30_000


def test_interleaved_calls_of_two_domains_with_the_same_thread_stay_apart() -> None:
    one, two, mixed = Conversation(), Conversation(), Conversation()
    one.standard_call(domain=1, thread=0)
    two.standard_call(domain=2, thread=0)
    rpc = abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR
    for domain in (1, 2):
        mixed.exchange(abi.CALL_WITH_ARG, [0, 0x1000 * domain], [rpc, 0, 0, 0], domain=domain)
    for domain in (1, 2):
        mixed.exchange(abi.RETURN_FROM_RPC, [0, 0, 0], [0], domain=domain)
    found = calls(mixed)
    assert [(call.start.domain, len(call.exchanges), call.finished) for call in found] == [
        (1, 2, True),
        (2, 2, True),
    ]


def test_what_never_ends_is_shown_as_unfinished() -> None:
    talk = Conversation()
    talk.exchange(abi.CALL_WITH_ARG, [0, 0x1000], [abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR, 0, 0, 0])
    talk.add(Kind.GUEST_CALL, [abi.CALLS_UID], domain=1, vcpu=1)
    assert [call.finished for call in calls(talk)] == [False, False]
    assert sum("unfinished" in line for line in show(talk.events())) == 2


def test_a_destroyed_domain_ends_its_calls_before_its_id_is_used_again() -> None:
    talk = Conversation()
    rpc = [abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR, 0, 0, 0]
    talk.exchange(abi.CALL_WITH_ARG, [0, 0x1000], rpc)
    talk.add(Kind.DOMAIN_DESTROY, [0x1234], imm=1, domain=0)
    talk.exchange(abi.CALL_WITH_ARG, [0, 0x2000], rpc)
    talk.exchange(abi.RETURN_FROM_RPC, [0, 0, 0], [0])
    dead, alive = calls(talk)
    assert not dead.finished and alive.finished and alive.start.regs[2] == 0x2000


def test_xens_own_calls_stand_alone() -> None:
    talk = Conversation()
    asked = talk.add(Kind.EL3_CALL, [abi.VM_CREATED, 2], domain=0)
    talk.add(Kind.EL3_RETURN, [0], parent=asked, domain=0)
    (call,) = calls(talk)
    assert call.finished and not call.from_guest
    assert "VM_CREATED client=2" in next(show(talk.events())) and "Xen's own" in next(show(talk.events()))


def test_the_text_uses_the_abis_words() -> None:
    lines = list(show(sample().events()))
    text = "\n".join(lines)
    assert "OPTEE_SMC_CALL_WITH_ARG cmd=OPEN_SESSION params=[TMEM_INPUT|NONCONTIG 2 pages size=0x2000" in text
    assert "-> RPC_CMD SHM_ALLOC params=[VALUE_INPUT b=0x1000 c=0x8] <- ret=SUCCESS" in text
    assert "=> OK ret=SUCCESS origin=0 session=0x5 (110 us)" in text
    assert "=> x0=0x384fb3e0 x1=0xe7f811e3" in text
    assert "domain 1 is being created" in lines[0] and "domain 1 is destroyed" in lines[-1]
    order = [text.index(word) for word in ("cmd=OPEN_SESSION", "RPC_FOREIGN_INTR", "RPC_CMD SHM_ALLOC", "=> OK ret")]
    assert order == sorted(order)


def test_an_aarch32_guest_is_labelled() -> None:
    talk = Conversation()
    talk.exchange(abi.CALLS_UID, [], [0], flags=Flag.HVC | Flag.AARCH32)
    assert "(HVC, AArch32)" in next(show(talk.events()))


@pytest.mark.parametrize(
    ("chosen", "heads"),
    [
        (Filter(domain=0), ["d0v0   OPTEE_SMC_CALLS_UID"]),
        (Filter(function="open_session"), ["cmd=OPEN_SESSION"]),
        (Filter(function="0xbf00ff01"), ["CALLS_UID", "CALLS_UID"]),
        (Filter(thread=0), ["cmd=OPEN_SESSION"]),
        (Filter(function="CALLS", since=0.00015), ["d0v0   OPTEE_SMC_CALLS_UID"]),
        (Filter(function="CALLS", until=0.00015), ["d1v0   OPTEE_SMC_CALLS_UID"]),
    ],
)
def test_filters_let_through_what_was_asked_for(chosen: Filter, heads: list[str]) -> None:
    found = [line for line in show(sample().events(), chosen) if "OPTEE_SMC" in line]
    assert len(found) == len(heads)
    assert all(head in line for head, line in zip(heads, found, strict=True))


def test_a_time_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UsageError, match="ends"):
        Filter(since=2, until=1)


def test_stats_count_calls_rpcs_and_time() -> None:
    found = collect(sample().events()).to_json()
    by_name = {(row["domain"], row["function"]): row for row in found["calls"]}
    whole = by_name[1, "CALL_WITH_ARG OPEN_SESSION"]
    assert whole["count"] == 1 and whole["whole_us"]["p50"] == 110.0 and whole["el3_us"]["max"] == 30.0
    assert by_name[0, "CALLS_UID"]["count"] == 1
    assert {(row["rpc"], row["count"]) for row in found["rpcs"]} == {
        ("FOREIGN_INTR", 1),
        ("CMD SHM_ALLOC", 1),
    }
    assert found["records"]["GUEST_CALL"] == 5 and not found["unfinished"]
    assert any("OPEN_SESSION" in line for line in collect(sample().events()).lines())


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (1, 1)])
def test_percentiles_are_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(range(1, 11), percent) == expected


def test_traces_that_say_the_same_do_not_differ() -> None:
    slow = sample()
    slow.records = [
        r[:16] + (int.from_bytes(r[16:24], "little") * 3).to_bytes(8, "little") + r[24:] for r in slow.records
    ]
    assert list(diff(sample().events(), slow.events())) == []


def test_a_different_answer_is_found_in_its_domain() -> None:
    other = Conversation()
    other.exchange(abi.CALLS_UID, [], [0x384FB3E0])
    other.exchange(abi.EXCHANGE_CAPABILITIES, [1], [0, 0x14])
    same = Conversation()
    same.exchange(abi.CALLS_UID, [], [0x384FB3E0])
    same.exchange(abi.EXCHANGE_CAPABILITIES, [1], [7])
    lines = list(diff(other.events(), same.events()))
    assert "- EXCHANGE_CAPABILITIES => OK" in lines and "+ EXCHANGE_CAPABILITIES => ENOTAVAIL" in lines
    assert lines[0] == "domain 1: 2 calls against 2"


def command(*words: str) -> int:
    """Run the real command line; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "t")
    write(tmp_path / "t", sample())
    assert command("show", path, "--domain", "1") == 0
    assert "OPEN_SESSION" in capsys.readouterr().out
    assert command("stats", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["counters"]["records"] == len(sample().records) + 1
    assert command("diff", path, path) == 0
    assert command("export", path, "-o", str(tmp_path / "x")) == 0
    assert len((tmp_path / "x").read_text().splitlines()) == len(sample().records) + 1
    other = Conversation()
    other.standard_call()
    write(tmp_path / "other", other)
    assert command("diff", path, str(tmp_path / "other")) == 1
