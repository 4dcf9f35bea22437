# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance suite as a part of the main job: exact and hostile stimuli, each on a fresh board of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from framework.artifacts.stack import Overrides
from framework.common import safe_files
from framework.common.errors import InfrastructureError
from framework.common.paths import ROOT, SUITE
from framework.common.progress import Progress
from framework.common.safe_text import decode
from framework.conformance.result import RESULT_FILE, SAID, ConformanceResult
from framework.jobs.pytest_process import follow
from framework.report.model import BoardTestReport
from framework.trace.coverage import SUFFIX
from framework.trace.senses import ALL, VARIABLE, Sense
from mediator_ref import RULES

_PROGRESS = frozenset(b".FEsx []%0123456789")
_TAIL_BYTES = 64 * 1024
_LINE_BYTES = 1000
_STATUS = {"failure": "failed", "error": "error", "skipped": "skipped"}


def run_stimuli(
    selection: Sequence[str],
    overrides: Overrides,
    board: str,
    domus: int | None,
    folder: Path,
    progress: Progress,
    senses: frozenset[Sense] = ALL,
    *,
    fail_fast: bool = False,
) -> tuple[BoardTestReport, ...]:
    """Run pytest on the part of the suite that ``selection`` (its own arguments: ``-m``, ``-k``, or tests) chooses. A
    nonconformance is said as soon as a stimulus is judged, and with ``fail_fast`` is the last thing that is.

    Logs and traces go to ``folder/testcases``. Raises InfrastructureError when pytest itself breaks, KeyboardInterrupt
    when it was interrupted and has ended.
    """
    results = folder / "testcases.xml"
    log = folder / "testcases.log"
    _forget(folder, results)
    # The suite's own configuration, and ids that begin in it: the same from a checkout and from a wheel.
    suite = ["-c", str(SUITE / "suite.ini"), f"--rootdir={SUITE}"]
    suite += [] if any("::" in word for word in selection) else [str(SUITE)]
    command = [sys.executable, "-m", "pytest", *suite, *selection, "-q", "-rN", "-p", "no:cacheprovider"]
    command += [f"--junitxml={results.absolute()}", f"--mc-board-logs={(folder / 'testcases').absolute()}"]
    # pytest runs beside the packages, wherever the user is.
    if "/" in board or board.endswith(".yaml"):
        board = str(Path(board).absolute())
    command += ["--mc-board", board, *([] if domus is None else [f"--mc-domus={domus}"])]
    command += [f"--mc-{word}" for word in overrides.words()]
    command += ["--mc-fail-fast"] if fail_fast else []
    # The run has fetched and built everything: a test that would download is a defect.
    environment = {**os.environ, "MEDCHECK_OFFLINE": "1", VARIABLE: ",".join(sorted(senses)) or "none"}
    with (
        progress.task("exact and hostile stimuli", unit="tests") as task,
        os.fdopen(safe_files.create(log), "wb", buffering=0) as sink,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        unfinished = b""

        def take(piece: bytes) -> None:
            nonlocal unfinished
            sink.write(piece)
            task.advance(_dots(piece))
            *lines, unfinished = (unfinished + piece).split(b"\n")
            unfinished = unfinished[:_LINE_BYTES]
            for line in lines:
                if line.startswith(SAID.encode()):
                    progress.say(decode(line[:_LINE_BYTES]))

        try:
            interrupted = follow(process, take)
        except BaseException:
            # The log cannot be written, say.
            process.terminate()
            raise
    if interrupted:
        raise KeyboardInterrupt
    code = process.returncode
    if code not in (0, 1) or not results.exists():
        tail = "\n".join(safe_files.tail(log, _TAIL_BYTES).decode(errors="replace").splitlines()[-8:])
        raise InfrastructureError(f"pytest broke off with exit code {code}:\n{tail}", where=str(log))
    return tuple(read_results(results))


def path_of(id_: str) -> str:
    """A stimulus's path for pytest, from its id in reports."""
    module, _, name = id_.partition("::")
    return f"{SUITE / module}.py::{name}"


def _forget(folder: Path, results: Path) -> None:
    """Remove what an earlier run left in the same report's folder: it is no evidence about this run's mediator."""
    for path in [results, *(folder / "testcases").rglob(RESULT_FILE), *(folder / "testcases").rglob(f"*{SUFFIX}")]:
        path.unlink(missing_ok=True)


def _dots(piece: bytes) -> int:
    """Count the tests in a piece of pytest's progress lines."""
    lines = (line for line in piece.split(b"\n") if set(line) <= _PROGRESS)
    return sum(line.count(sign) for line in lines for sign in (b".", b"F", b"s"))


def read_results(path: Path) -> Iterator[BoardTestReport]:
    """Return the tests in pytest's JUnit file, with their notes (``user_properties``)."""
    seen: dict[str, BoardTestReport] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        name = identifier(f"{case.get('classname', '')}::{case.get('name')}")
        bad = next((child for child in case if child.tag in _STATUS), None)
        properties = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
        report = BoardTestReport(
            id=name,
            status="passed" if bad is None else _status(bad.tag, dict(properties)),
            seconds=float(case.get("time", "0")),
            error=None if bad is None else _first_line(bad.get("message") or bad.text or bad.tag),
            rules=tuple(value for key, value in properties if key == "rule"),
            deviations=tuple(value for key, value in properties if key == "deviation"),
            slowdowns=dict(_slowdown(value) for key, value in properties if key == "slowdown"),
        )
        # A test whose teardown fails (the checker's verdict) stands there twice; the worse one counts.
        if name not in seen or seen[name].status == "passed":
            seen[name] = report
    yield from seen.values()


def _status(tag: str, properties: Mapping[str | None, str]) -> str:
    """The status of a test that did not pass; the plugin notes that what failed it was a silence."""
    return "hang" if tag != "skipped" and "hang" in properties else _STATUS[tag]


def identifier(nodeid: str) -> str:
    """A stimulus's id in reports, ``abi/test_rpc::test_x``: pytest's own id, or JUnit's class and name, without what
    stands before the suite's folder."""
    module, _, name = nodeid.partition("::")
    parts = module.removesuffix(".py").replace(".", "/").split("/")
    if "suite" in parts:
        parts = parts[parts.index("suite") + 1 :]
    return f"{'/'.join(parts)}::{name}"


def results_of_stimuli(folder: Path) -> dict[str, ConformanceResult]:
    """Return the result of each stimulus's trace, by the stimulus's id; the plugin left it beside the trace.

    A stimulus with several boards has a number behind the id from its second on. Raises InfrastructureError for a file
    that is not as the plugin writes it: evidence that cannot be read must not look like none that was there.
    """
    found: dict[str, ConformanceResult] = {}
    for path in sorted((folder / "testcases").rglob(RESULT_FILE)):
        try:
            data = json.loads(path.read_bytes())
            name, result = identifier(data["test"]), ConformanceResult.from_json(data)
            if {rule.id for rule in result.rules} != RULES.keys():
                raise ValueError("its rules are not those of the reference")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InfrastructureError(f"a stimulus's result cannot be read: {error!r}", where=str(path)) from error
        same = sum(known.split("#")[0] == name for known in found)
        found[f"{name}#{same + 1}" if same else name] = result
    return found


def _slowdown(text: str) -> tuple[str, float]:
    """Parse a note of the ``slowdown`` fixture: ``vm1=1.83``."""
    guest, _, factor = text.rpartition("=")
    return guest, float(factor)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
