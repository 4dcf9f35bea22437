# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics of a trace: counts and times of calls, and their RPCs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from framework.trace.calls import Call, fold
from framework.trace.event import Event
from framework.trace.format import Kind
from framework.trace.show import command_name, rpc_name
from mediator_ref.describe import function_name

_PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The nearest-rank percentile of an ordered, non-empty sequence."""
    return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]


@dataclass(slots=True)
class Latency:
    """Board times of one kind of call in nanoseconds: whole calls, and the part spent below Xen."""

    whole: list[int] = field(default_factory=list)
    el3: list[int] = field(default_factory=list)
    el2: list[int] = field(default_factory=list)
    """Instructions of the hypervisor for a whole call, of those calls for which they are known."""

    def to_json(self) -> dict[str, Any]:
        """Percentiles in microseconds."""
        found: dict[str, Any] = {"count": len(self.whole)}
        for name, values in (("whole_us", self.whole), ("el3_us", self.el3)):
            ordered = sorted(values)
            found[name] = {f"p{p}": round(percentile(ordered, p) / 1000, 3) for p in _PERCENTILES}
            found[name]["max"] = round(ordered[-1] / 1000, 3)
        if self.el2:
            ordered = sorted(self.el2)
            found["el2_instructions"] = {f"p{p}": percentile(ordered, p) for p in _PERCENTILES} | {"max": ordered[-1]}
        return found


@dataclass(slots=True)
class Stats:
    """Result of :func:`collect`. ``calls`` is keyed by domain (None: unknown) and name."""

    records: Counter[str] = field(default_factory=Counter)
    calls: dict[tuple[int | None, str], Latency] = field(default_factory=lambda: defaultdict(Latency))
    rpcs: Counter[tuple[int | None, str]] = field(default_factory=Counter)
    unfinished: Counter[tuple[int | None, str]] = field(default_factory=Counter)
    counters: dict[str, int] | None = None
    first_ns: int | None = None
    last_ns: int = 0

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seconds": 0.0 if self.first_ns is None else round((self.last_ns - self.first_ns) / 1e9, 6),
            "records": dict(self.records),
            "calls": [
                {"domain": domain, "function": name, **latency.to_json()}
                for (domain, name), latency in sorted(self.calls.items(), key=_order)
            ],
            "rpcs": [
                {"domain": domain, "rpc": name, "count": count}
                for (domain, name), count in sorted(self.rpcs.items(), key=_order)
            ],
            "unfinished": [
                {"domain": domain, "function": name, "count": count}
                for (domain, name), count in sorted(self.unfinished.items(), key=_order)
            ],
            "counters": self.counters,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        found = self.to_json()
        yield f"{sum(self.records.values())} records in {found['seconds']:.3f} s of board time: " + ", ".join(
            f"{count} {name}" for name, count in self.records.most_common()
        )
        titles = ("p50 us", "p90 us", "p99 us", "max us", "EL3 p50", "EL2 insns", "EL2 max")
        yield f"{'domain':<7} {'function':<34} {'count':>7}" + "".join(f" {title:>11}" for title in titles)
        for row in found["calls"]:
            whole = row["whole_us"]
            values = (whole["p50"], whole["p90"], whole["p99"], whole["max"], row["el3_us"]["p50"])
            head = f"{_domain(row['domain']):<7} {row['function']:<34} {row['count']:>7}"
            spent = row.get("el2_instructions")
            known = f" {spent['p50']:>11,} {spent['max']:>11,}" if spent else f" {'–':>11} {'–':>11}"
            yield head + "".join(f" {value:>11.1f}" for value in values) + known
        for row in found["rpcs"]:
            yield f"{_domain(row['domain']):<7} RPC {row['rpc']:<30} {row['count']:>7}"
        for row in found["unfinished"]:
            yield f"{_domain(row['domain']):<7} unfinished {row['function']:<23} {row['count']:>7}"
        if self.counters is not None:
            yield "plugin: " + ", ".join(
                f"{value} {name}" for name, value in self.counters.items() if value and not name.startswith("kind_")
            )


def collect(events: Iterable[Event]) -> Stats:
    """Count a trace."""
    stats = Stats()
    for item in fold(_watched(events, stats)):
        if isinstance(item, Call):
            _add(stats, item)
        elif item.kind == Kind.COUNTERS:
            stats.counters = item.counters()
    return stats


def _watched(events: Iterable[Event], stats: Stats) -> Iterator[Event]:
    names = {int(kind): kind.name for kind in Kind}
    for event in events:
        stats.records[names.get(event.kind, str(event.kind))] += 1
        if stats.first_ns is None:
            stats.first_ns = event.time_ns
        stats.last_ns = event.time_ns
        yield event


def _add(stats: Stats, call: Call) -> None:
    domain = call.start.domain
    command = command_name(call)
    name = function_name(call.fid) + (f" {command}" if command else "")
    for exchange in call.exchanges:
        rpc = rpc_name(exchange)
        if rpc is not None:
            stats.rpcs[domain, rpc] += 1
    duration = call.duration_ns
    if duration is None:
        if call.start.is_tee:
            stats.unfinished[domain, name] += 1
        return
    latency = stats.calls[domain, name]
    latency.whole.append(duration)
    latency.el3.append(sum(exchange.el3_ns for exchange in call.exchanges))
    spent = [exchange.el2_instructions for exchange in call.exchanges]
    if None not in spent:
        latency.el2.append(sum(filter(None, spent)))


def _domain(domain: int | None) -> str:
    return "?" if domain is None else "xen" if domain >= 0x7FF0 else f"d{domain}"


def _order(item: tuple[tuple[int | None, str], Any]) -> tuple[int, str]:
    domain, name = item[0]
    return (-1 if domain is None else domain, name)
