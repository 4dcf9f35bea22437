# SPDX-License-Identifier: GPL-2.0-or-later
"""A realistic report with a failure, hostile text and consoles, for the tests of framework.report."""

from __future__ import annotations

from pathlib import Path

from framework.conformance.conclusion import Conclusion, Kind
from framework.conformance.policy import FailOn
from framework.conformance.result import ConformanceResult, DeviationSeen, Nonconformance, RuleResult
from framework.report import model

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[31mred\x1b[0m\x00\u202egnp.exe\ud800]]>"
"""Everything a guest could send to break out of HTML, XML, a terminal or an encoding."""

_CASES = (
    ("regression_1001", "Core self tests", 0.13, 3),
    ("regression_1002", "PTA parameters", 0.03, 0),
    ("regression_1003", "Core internal read/write mutex", 0.92, 0),
    ("regression_1004", "Test User Crypt TA", 1.42, 14),
    ("regression_1006", "Test secure storage of a TA", 2.31, 12),
    ("regression_1013", "Test concurrent TA with larger shared memory", 6.8, 4),
    ("regression_4001", "Test TEE Internal API hash operations", 4.61, 1180),
    ("regression_4003", "Test TEE Internal API cipher operations", 7.35, 1842),
    ("regression_4006", "Test TEE Internal API asymmetric cipher operations", 38.72, 611),
    ("regression_5006", "Tests CloseSession and shared memory", 0.52, 7),
    ("regression_6001", "Test TEE secure storage, persistent objects", 3.94, 96),
    ("regression_6016", "Storage concurrency", 12.8, 2),
)

STACK = tuple(
    model.ComponentReport(name, version, f"{number:02x}" * 32, origin)
    for number, (name, version, origin) in enumerate(
        (
            ("qemu", "11.1.3", "pinned"),
            ("tf-a", "2.12.1", "built"),
            ("optee-os", "4.10.0", "built"),
            ("xen", "4.17.5 debug, given with --xen", "user"),
            ("linux", "6.12.63-1", "pinned"),
            ("xtest", "4.10.0", "pinned"),
        ),
        start=0xA3,
    )
)


def _title(ident: str, number: int) -> str:
    return f"AES case {number}, 128 bit key, no padding" if ident == "regression_4003" else ""


def guest(name: str, domid: int, *, failing: bool, scale: float = 1, factor: float = 1.0) -> model.GuestReport:
    """A guest that ran the sample cases; ``scale`` multiplies the subtests, but leaves at least seven."""
    cases = []
    for number, (ident, title, seconds, count) in enumerate(_CASES):
        subtests = tuple(
            model.Subtest(f"{ident}.{i}", "OK", None, _title(ident, i))
            for i in range(1, max(min(count, 7), round(count * scale)) + 1)
        )
        status = "SKIPPED" if ident == "regression_6016" else "OK"
        if failing and ident == "regression_5006":
            error = f"regression_5000.c:1234: res has an unexpected value: 0xffff000c {HOSTILE}"
            subtests = (
                *subtests[:4],
                model.Subtest(f"{ident}.5", "FAILED", error),
                model.Subtest(f"{ident}.6", "FAILED", "regression_5000.c:1240: session is not open"),
                *subtests[6:],
            )
            status = "FAILED"
        cases.append(model.Case(ident, title, status, round(seconds * factor + number / 1000, 3), subtests))
    every = [sub for case in cases for sub in case.subtests]
    totals = model.XtestTotals(
        cases=len(cases),
        cases_failed=int(failing),
        subtests=len(every),
        subtests_failed=sum(sub.status == "FAILED" for sub in every),
        skipped=1,
    )
    return model.GuestReport(name, domid, model.XtestReport(tuple(cases), totals, int(failing)), slowdown=factor)


def conformance() -> ConformanceResult:
    """Rules of every verdict, a nonconformance and deviations, one of them private."""
    verdicts = ("pass", "pass", "pass", "not exercised", "not checked")
    groups = (("DISP", "abi"), ("MEM", "isolation"), ("RPC", "correctness"), ("LIM", "availability"))
    rules = [
        RuleResult(
            f"{group}-{i}", f"What {group} rule number {i} demands of every call", severity,
            verdicts[i % 5], 0 if i % 5 > 2 else 40123 // (i + 1), 0, carried_by=("run", HOSTILE),
        )
        for group, severity in groups
        for i in range(1, 9)
    ]  # fmt: skip
    freed = "Shared memory is freed when a domain dies in an RPC"
    rules.append(RuleResult("RPC-12", freed, "availability", "fail", 310, 2))
    released = "A buffer is released by what registered it"
    rules.append(RuleResult("MEM-11", released, "isolation", "deviation", 85, 0, 3))
    rules.append(
        RuleResult(
            "STD-9", "A completed call writes back the outputs", "isolation", "not checked", 0, 0,
            not_checked=7, not_checked_reasons=("the page was not observed (6x)", HOSTILE),
            reasons={"the page was not observed": 6, HOSTILE: 1},
        )
    )  # fmt: skip
    explanation = (
        "event  #18734  +31.402118 s  domain 2 vcpu 0\n"
        "  OPTEE_SMC_CALL_RETURN_FROM_RPC  a0=0x32000003 a1=0x0 a2=0x7f3a1000\n"
        "field        expected      observed\n"
        "  a0         ERETURN_EBUSY ERETURN_OK\n"
        "state before: domain 2: 3 calls in flight, 12 shared buffers, 44 pages pinned\n"
        "replay: medcheck trace replay trace/run.mct --until 18734"
    )
    call, unpinned = "#18734 CALL_RETURN_FROM_RPC of domain 2", ("44 pages unpinned", "41 pages unpinned")
    return ConformanceResult(
        events_checked=48211,
        rules=tuple(rules),
        nonconformances=(
            Nonconformance("RPC-12", 18734, 2, call, *unpinned, explanation, where="run"),
            Nonconformance("RPC-12", 19001, 2, f"#19001 {HOSTILE}", HOSTILE, HOSTILE, HOSTILE, where=HOSTILE),
        ),
        deviations=(
            DeviationSeen("D3", "MEM-11, MEM-7", "seen", "3 of 88 buffers, first at event 7101", 3, True, (HOSTILE,)),
            DeviationSeen("D7", "LIM-2, MEM-11", "not seen", "stimulus present 14 times", 14, False),
        ),
        gaps=(f"run: {HOSTILE}",),
    )


def conclusion() -> Conclusion:
    """What is drawn of :func:`conformance`, with names out of a hostile baseline."""
    names = ("D3",), ("D3",), (HOSTILE,), (HOSTILE,), ("RPC-12",)
    return Conclusion(Kind.NONCONFORMING, f"does not conform: {HOSTILE}", True, FailOn.ISOLATION, *names)


def consoles(folder: Path, lines: int = 40) -> tuple[model.ConsoleReport, ...]:
    """Write console logs with hostile content into ``folder`` and name them."""
    texts = {
        "xen": b"(XEN) Using TEE mediator for OP-TEE",
        "optee": b"I/TC: Primary CPU switching to normal world boot",
        "dom0": b"medcheck: dom0 ready",
        "guest0": b"* regression_4006 Test TEE Internal API asymmetric cipher operations",
        "guest1": b"[    3.141592] optee: revision 4.10 (0123456789abcdef), long enough to wrap on a phone",
    }
    (folder / "consoles").mkdir(parents=True, exist_ok=True)
    reports = []
    for number, (name, text) in enumerate(texts.items()):
        path = folder / "consoles" / f"{name}.log"
        body = [b"[%10.3f] %s %d" % (number * 0.31 + i * 0.77, text, i) for i in range(lines)]
        if name == "guest0":
            body.insert(9, b"[     6.900] " + HOSTILE.encode("utf-8", "surrogatepass") + b" \xff\xfe\r")
        if name == "xen":
            body.insert(30, b"[    22.000] (XEN) Assertion 'page_get_owner(pg)' failed at common/memory.c:77")
        path.write_bytes(b"\n".join(body) + b"\n")
        reports.append(model.ConsoleReport(name, path))
    return tuple(reports)


def sample(folder: Path, *, scale: float = 1, failing: bool = True, lines: int = 40) -> model.RunReport:
    """The whole report; its console logs are written into ``folder``."""
    problem = model.Problem(
        "xen-assertion", "xen", "(XEN) Assertion 'page_get_owner(pg)' failed at common/memory.c:77", 22.0
    )
    return model.RunReport(
        verdict="fail" if failing else "pass",
        reason="xtest failed in vm2, and a rule of the reference mediator was broken" if failing else None,
        profile="standard",
        started="2025-03-14T15:09:26+00:00",
        seconds=187.31,
        host={"cores": 2, "memory_mib": 7944, "speed": 0.87},
        stack=STACK,
        guests=(
            guest("vm1", 1, failing=False, scale=scale),
            guest("vm2", 2, failing=failing, scale=scale, factor=1.31),
        ),
        timings=(
            model.Timing("Xen", 1.62), model.Timing("dom0 ready", 17.4), model.Timing("vm1 created", 19.02),
            model.Timing("vm2 created", 20.9),
            model.Timing("vm1 ready", 28.7), model.Timing("vm2 ready", 29.1),
        ),
        problems=(problem,) if failing else (),
        consoles=consoles(folder, lines),
        artifacts=(folder / "trace" / "run.mct",),
        conformance=conformance() if failing else None,
        conclusion=conclusion() if failing else None,
        reproduce="./medcheck run --profile standard --xen ~/xen/xen/xen --xen-syms ~/xen/xen/xen-syms",
    )  # fmt: skip
