# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs xtest in a guest, or in several at the same time, and reports the outcome of every case and subtest.

A run ends with a result even when the guest dies in the middle: the case that was running is ``crashed`` and
:attr:`XtestResult.crash` names what was seen, with the end of the console that showed it.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from framework.common.errors import GuestCrash, GuestError, MedcheckError, UsageError
from framework.diagnosis.crash import Watch
from framework.guests.ssh import Alive, SshClient, always_alive
from framework.guests.ssh_talk import EndlessOutputError
from framework.guests.xtest_parser import CaseDone, Event, XtestParser
from framework.report.model import Case, Subtest, XtestReport, XtestTotals

__all__ = ["Case", "Subtest", "XtestGuest", "XtestResult", "run_xtest", "run_xtest_in_all"]

IDLE_TIMEOUT = 300.0
"""Seconds (scaled) without any output after which a run hangs: several times the longest silence seen in a
good one."""

MOST_OUTPUT = 64 << 20
"""Bytes of output that are parsed; the whole regression suite at level 0 prints less than 1 MiB."""
LONGEST = 4 * 3600.0
"""Seconds (scaled) that a run at level 0 may take, ten times as many at higher levels; the regression suite takes
750."""

_NO_SUPPLICANT = "medcheck: tee-supplicant does not run"
_GUARD = f"pidof tee-supplicant >/dev/null || {{ echo {_NO_SUPPLICANT!r}; exit 125; }}"
"""Shell command that ends with 125 without a supplicant: OP-TEE's driver would wait for ever, and xtest hang
silently."""

_FIRST_CHECK = 5.0
"""Seconds of silence after which dom0 is asked for the domain the first time."""

LONGEST_SILENCE: dict[str, float] = {}
"""Longest time (seconds) in which a good run of a case makes no SMC and gives no CPU work, where that is more than
:data:`_SHORT_SILENCE`. None of the standard set is; the longest are those of 1008 and 1009, 1.8 s (docs/numbers.md)."""
_SHORT_SILENCE = 2.0
MANY_TIMES = 10
_IDLE_SHOWN = 1.0

_LOG_HEAD = 1 << 20
_GOT = re.compile(r"\A[^:\s]{1,80}:[0-9]{1,9}: (.{1,300}?) has an unexpected value: 0xffff000f\b", re.IGNORECASE)
"""Matches what a check got, not what it expected: TEEC_ERROR_SECURITY."""
_OPENS = re.compile(r"open_?session|\A(?:res|ret|rc|result)\Z", re.IGNORECASE)
_LOADS_TA = re.compile(r"regression_(?:1004|1005|1006|1009|101[1356]|1021|4\d{3}|6\d{3})|(?:pkcs11|gp|benchmark)_")
"""Cases that run a signed trusted application from the guest's files."""
_REVISION = re.compile(rb"optee: revision ([!-~]{1,80})|OP-TEE version: ([!-~]{1,80})")
_CASE = re.compile(r"[A-Za-z0-9_]+")
_SUITE = re.compile(r"[a-z0-9_]+(\+[a-z0-9_]+)*")


class XtestGuest(Protocol):
    """The part of a guest that a run uses; :class:`framework.guests.linux.LinuxGuest` is one, dom0 another."""

    name: str

    @property
    def ssh(self) -> SshClient:
        """The connection to it."""

    @property
    def watch(self) -> Watch:
        """The watch over what ends it."""

    def check_alive(self) -> None:
        """Raise GuestCrash or BoardError when it died; cheap."""

    def check_domain(self) -> None:
        """Ask the toolstack whether the domain lives; raises GuestCrash if not."""

    def diagnose(self, what: str) -> GuestCrash:
        """Raise or return the reason why it does not answer."""

    def logs(self) -> list[bytes]:
        """The beginnings of its own console's log and OP-TEE's."""


@dataclass(frozen=True)
class XtestResult(XtestReport):
    """One run in ``guest``, of ``seconds``; ``crash`` is what ended it early. ``exit_code`` is None after a crash, else
    the number of failed cases modulo 256."""

    guest: str = ""
    seconds: float = 0.0
    crash: GuestCrash | None = None

    @property
    def good(self) -> bool:
        """Whether everything asked for ran and passed, all counts agree, and the guest lives."""
        return self.crash is None and super().good

    @property
    def flaky(self) -> bool:
        """Whether the only fault is that cases failed which passed when they ran again, and none is missing."""
        return self.crash is None and super().flaky

    @property
    def reason(self) -> str | None:
        """Return why it is not good, in one sentence (a crash brings its console's last lines along)."""
        if self.good:
            return None
        if self.crash is not None:
            return self.crash.what
        bad = [case for case in self.cases if case.status not in ("ok", "skipped")]
        said = self.problems[0] if self.problems else ""
        if bad:
            first = f"{len(bad)} of {len(self.cases)} cases failed, first {bad[0].id}: {bad[0].error}"
            return f"{said}; {first}" if said else first
        return said or f"xtest ended with exit code {self.exit_code} after {len(self.cases)} cases"


def run_xtest(
    guest: XtestGuest,
    cases: Sequence[str] | None = None,
    *,
    suite: str = "regression",
    level: int = 0,
    on_event: Callable[[Event], None] | None = None,
    alive: Alive = always_alive,
    idle_timeout: float = IDLE_TIMEOUT,
) -> XtestResult:
    """Run ``cases`` of xtest (``1004`` or ``regression_1004``; None: the whole suite) and follow its output.

    ``on_event`` gets every case and subtest as it begins and ends. Raises UsageError for a case that cannot
    be one, GuestError or BoardError when the infrastructure failed; a guest that crashes is a result.
    """
    wanted = case_ids(cases, suite)
    command = shlex.join(["xtest", "-l", str(int(level)), "-t", suite, *wanted])
    run = _Run(guest, alive, on_event)
    begin = time.monotonic()
    crash: GuestCrash | None = None
    code: int | None = None
    try:
        # The shell stays, so that an xtest that dies of a signal gives an exit code, too.
        stream = guest.ssh.stream(
            f"{_GUARD}; {command}; exit $?", idle_timeout=idle_timeout, alive=run.check,
            limit=MOST_OUTPUT, deadline=LONGEST if level == 0 else 10 * LONGEST,
        )  # fmt: skip
        for line in stream:
            run.feed(line)
        code = stream.rc
    except EndlessOutputError as endless:
        run.parser.give_up(f"xtest was given up: {endless.what}")
    except GuestCrash as death:
        crash = death
    except GuestError as silence:
        crash = _named(guest, silence)
    run.close()
    crash = _placed(crash, run.died_in)
    return _result(guest, run.parser, wanted, code, crash, time.monotonic() - begin)


def run_xtest_in_all(
    guests: Sequence[XtestGuest],
    cases: Sequence[str] | None = None,
    *,
    own: Mapping[str, Sequence[str]] | None = None,
    make_ready: Callable[[XtestGuest], None] | None = None,
    suite: str = "regression",
    level: int = 0,
    on_event: Callable[[str, Event], None] | None = None,
    on_case: Callable[[str, Case], None] | None = None,
    alive: Alive = always_alive,
    idle_timeout: float = IDLE_TIMEOUT,
) -> dict[str, XtestResult]:
    """Run the same cases in all guests at the same time; results by guest name, in the order of ``guests``. ``own`` are
    the cases of guests that run others, by name.

    ``make_ready`` waits, in the guest's own thread, until the guest can run them: none waits for another one. Without
    it, all must be ready. What it raises is an infrastructure failure.

    The other callbacks get the guest's name first and are never called by two threads at once. A guest that crashes
    does not stop the others; an infrastructure failure or an interrupt stops all and is raised.
    """
    chosen = {guest.name: (own or {}).get(guest.name, cases) for guest in guests}
    for each in chosen.values():
        case_ids(each, suite)
    if make_ready is None:
        for guest in guests:
            guest.ssh.connect()
    stop, one_at_a_time = threading.Event(), threading.Lock()
    results: dict[str, XtestResult] = {}
    failures: list[BaseException] = []

    def check() -> None:
        if stop.is_set():
            raise _StoppedError("stopped")
        alive()

    def tell(name: str, event: Event) -> None:
        with one_at_a_time:
            if on_event is not None:
                on_event(name, event)
            if on_case is not None and isinstance(event, CaseDone):
                on_case(name, event.case)

    def work(guest: XtestGuest) -> None:
        try:
            if make_ready is not None:
                make_ready(guest)
            results[guest.name] = run_xtest(
                guest, chosen[guest.name], suite=suite, level=level, idle_timeout=idle_timeout, alive=check,
                on_event=lambda event: tell(guest.name, event),
            )  # fmt: skip
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=work, args=(guest,), name=f"xtest-{guest.name}", daemon=True) for guest in guests
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        raise next((error for error in failures if not isinstance(error, _StoppedError)), failures[0])
    return {guest.name: results[guest.name] for guest in guests}


def case_ids(cases: Sequence[str] | None, suite: str = "regression") -> list[str]:
    """Full case ids, each once.

    xtest matches substrings of ids: ``1004`` alone would run ``pkcs11_1004``, too, but no full id lies
    within another one. Raises UsageError for what cannot be a case of ``suite``: an id begins with its suite and
    holds a number (``regression_1004``, and ``regression_nxp_001`` of a vendor's).
    """
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"'{suite}' is no xtest suite", hint="such as regression, or regression+pkcs11")
    result = []
    for case in cases or ():
        if not _CASE.fullmatch(case):
            raise UsageError(f"'{case}' is no xtest case", hint="such as 1004, 4006_rsa or regression_1004")
        if case[0].isdigit():
            if "+" in suite:
                full = f"{suite.partition('+')[0]}_{case}"
                raise UsageError(f"'{case}' could be of any suite", hint=f"such as {full}")
            case = f"{suite}_{case}"
        elif not case.startswith(tuple(f"{part}_" for part in suite.split("+"))) or not re.search("[0-9]", case):
            full = f"{suite.partition('+')[0]}_1004"
            raise UsageError(f"'{case}' is no case of xtest's suite {suite}", hint=f"such as {full}")
        result.append(case)
    return list(dict.fromkeys(result))


def hang_after(name: str) -> float:
    """Return the seconds of idle CPUs without an SMC after which a case, or part of one, hangs. They are never scaled:
    no host is too slow for what has nothing to do."""
    return MANY_TIMES * LONGEST_SILENCE.get(name.partition(".")[0], _SHORT_SILENCE)


class _StoppedError(MedcheckError):
    """Another guest's failure, or the user, stopped this run; never seen outside."""


class _Run:
    """One guest's parser, and the watch over the guest."""

    def __init__(self, guest: XtestGuest, alive: Alive, on_event: Callable[[Event], None] | None) -> None:
        self.parser = XtestParser()
        self.died_in: str | None = None
        self._guest = guest
        self._alive = alive
        self._on_event = on_event or (lambda _event: None)
        self._last = time.monotonic()
        self._check_after = _FIRST_CHECK
        self._seen: object = None

    def feed(self, line: bytes) -> None:
        """Take a line that has just come."""
        self._last = time.monotonic()
        self._check_after = _FIRST_CHECK
        for event in self.parser.feed(line, self._last):
            self._on_event(event)

    def check(self) -> None:
        """Raise if anything died, or hangs; in a silence also ask dom0, less and less often, because a domain that
        vanished leaves its connection open."""
        self._alive()
        self._guest.check_alive()
        self._check_hang()
        if time.monotonic() - self._last > self._check_after:
            self._check_after *= 2
            self._guest.check_domain()

    def _check_hang(self) -> None:
        """Raise if the board has been idle for many times as long as the running case ever lets it be."""
        watcher = self._guest.ssh.on_silence
        if watcher is None or self.parser.running is None:
            return
        silence = min(watcher.idle(), time.monotonic() - self._last)
        if silence < _IDLE_SHOWN:
            self._seen = watcher.sample()
        if silence > hang_after(self.parser.running):
            why = watcher.explain(self._seen)
            still = f"no SMC and no work for a CPU for {silence:.0f} s, {MANY_TIMES} times what the case ever waits"
            raise self._guest.diagnose(f"{still}\n    {why}" if why else still)

    def close(self) -> None:
        """End the parser's input."""
        self.died_in = self.parser.running
        for event in self.parser.finish(time.monotonic()):
            self._on_event(event)


def _named(guest: XtestGuest, silence: GuestError) -> GuestCrash:
    try:
        return guest.diagnose(silence.what)
    except GuestCrash as death:
        return death


def _placed(crash: GuestCrash | None, place: str | None) -> GuestCrash | None:
    if crash is None or place is None:
        return crash
    first, newline, rest = crash.what.partition("\n")
    what = f"in {place}: {first}{newline}{rest}"
    placed = GuestCrash(what, where=crash.where, hint=crash.hint, hang=crash.hang)
    placed.__cause__ = crash
    return placed


def _result(
    guest: XtestGuest, parser: XtestParser, wanted: Sequence[str], code: int | None, crash: GuestCrash | None,
    seconds: float,
) -> XtestResult:  # fmt: skip
    disagreements = list(_disagreements(parser, wanted, code)) if crash is None else []
    causes = [cause for cause in (_fatal(parser), _other_release(guest, parser)) if cause]
    said = parser.totals
    agree = crash is None and parser.fatal is None and not disagreements
    totals = XtestTotals(said.cases, said.cases_failed, said.checks, said.checks_failed, said.cases_skipped, agree)
    problems = (*causes, *disagreements, *parser.problems)
    cases = tuple(parser.cases)
    if crash is not None and crash.hang and cases and cases[-1].status == "crashed":
        cases = (*cases[:-1], replace(cases[-1], status="hang"))
    return XtestResult(cases, totals, code, problems, guest.name, seconds, crash)


def _disagreements(parser: XtestParser, wanted: Sequence[str], code: int | None) -> Iterator[str]:
    if parser.fatal is not None:
        return
    if parser.limits:
        yield from parser.limits
        return
    totals = parser.totals
    if totals.cases is None or totals.checks is None:
        ending = f"exit code {code}" + (f" (signal {code - 128})" if code is not None and code > 128 else "")
        yield f"xtest ended with {ending} before it gave its totals; its last line: {parser.last_line!r}"
        return
    yield from parser.disagreements()
    if totals.cases_failed is not None and code != totals.cases_failed % 256:
        yield f"xtest counts {totals.cases_failed} failed test cases, its exit code is {code}"
    if totals.aborted:
        yield "xtest aborted its suite"
    ran = [case.id for case in parser.cases]
    for name in wanted:
        if not any(name in case for case in ran):
            yield f"this xtest has no case {name}"
    for case in ran:
        if wanted and not any(name in case for name in wanted):
            yield f"{case} ran, but was not requested"


def _fatal(parser: XtestParser) -> str | None:
    if parser.fatal is None:
        return None
    if "TEE context" in parser.fatal:
        return f"{parser.fatal}: the guest has no /dev/tee0 (no OP-TEE, or its driver is not loaded)"
    if parser.fatal == _NO_SUPPLICANT:
        return "tee-supplicant does not run in the guest: OP-TEE's remote procedure calls would not be served"
    return parser.fatal


def _other_release(guest: XtestGuest, parser: XtestParser) -> str | None:
    """Trusted applications are signed with a key of the OP-TEE release that they were built with. One that loads shows
    that the keys fit."""
    refused = [case for case in parser.cases if case.status == "failed" and _refused(case.error)]
    if not refused or any(case.status == "ok" and _LOADS_TA.match(case.id) for case in parser.cases):
        return None
    found = [match for log in guest.logs() if (match := _REVISION.search(log[:_LOG_HEAD]))]
    release = (found[0][1] or found[0][2]).decode(errors="replace") if found else "(release unknown)"
    return (
        f"OP-TEE {release} refuses xtest's trusted applications in {len(refused)} cases,"
        f" first {refused[0].id} (TEEC_OpenSession: 0xffff000f TEEC_ERROR_SECURITY, the signature does not"
        " verify): xtest and its TAs must come from the same release and signing key as OP-TEE OS"
    )


def _refused(error: str | None) -> bool:
    match = _GOT.match(error or "")
    return match is not None and _OPENS.search(match[1]) is not None
