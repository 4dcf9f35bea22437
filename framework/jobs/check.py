# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of ``medcheck check`` and ``medcheck explain``, and a result in words."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict

from framework.artifacts.overrides import Overrides
from framework.common.disclosure import TELL_FIRST
from framework.common.errors import ExitCode, UsageError
from framework.common.progress import Answer
from framework.conformance.baseline import load_baseline
from framework.conformance.checker import check_file, replay
from framework.conformance.conclusion import Conclusion, Kind, conclude
from framework.conformance.explain import explain_rule, list_rules
from framework.conformance.policy import FailOn
from framework.conformance.result import NOT_CHECKED, NOT_EXERCISED, ConformanceResult
from framework.conformance.rules_doc import board_tests, rules_table
from framework.trace.reader import named_trace
from mediator_ref import Deviation, Outcome


def explain(options: argparse.Namespace, output: Answer) -> int:
    """Print a rule or a deviation, the list of both, or the table of rules."""
    if options.table and options.rule:
        raise UsageError("--table shows all rules", hint="leave the name or --table out")
    if options.table:
        tests = board_tests()
        output.finish({"board_tests": tests, "text": rules_table(tests)}, rules_table(tests).rstrip("\n"))
        return ExitCode.GOOD
    text = explain_rule(options.rule) if options.rule else list_rules()
    output.finish({"rule": options.rule, "text": text}, text)
    return ExitCode.GOOD


def check(options: argparse.Namespace, output: Answer) -> int:
    """Check a trace, or explain one record of it; returns the exit code."""
    deviations: dict[str, Deviation] | None = {} if options.strict else None
    named_trace(options.file)
    if options.record is not None:
        return _replay(options, output, deviations)
    baseline = None if options.baseline is None else load_baseline(options.baseline)
    version = _version_of_xen(options, output)
    result = check_file(options.file, output.progress, deviations=deviations)
    conclusion = conclude(result, FailOn(options.fail_on), baseline, version)
    document = {**result.to_json(), "conclusion": asdict(conclusion)}
    output.finish(document, "\n".join([conclusion.sentence, "", *lines(result)]))
    return exit_code(conclusion)


def _version_of_xen(options: argparse.Namespace, output: Answer) -> str | None:
    """The version of the Xen that was traced, as far as the options tell."""
    overrides = Overrides(xen=options.xen, xen_tree=options.xen_tree, xen_rev=options.xen_rev)
    if overrides == Overrides():
        return None
    # Imports of a second that most traces do not need.
    from framework.artifacts.user_files import check as check_files
    from framework.artifacts.xen import version_of

    check_files(overrides)
    return version_of(overrides, output.progress.say)


def _replay(options: argparse.Namespace, output: Answer, deviations: dict[str, Deviation] | None) -> int:
    decided, texts = replay(options.file, options.record, options.segment, deviations=deviations)
    failed = any(verdict.outcome is Outcome.FAIL for verdict in decided)
    text = "\n\n".join(texts) or f"record {options.record}: no check failed"
    output.finish({"record": options.record, "failed": failed, "explanations": list(texts)}, text)
    return ExitCode.FAILED if failed else ExitCode.GOOD


def exit_code(conclusion: Conclusion) -> ExitCode:
    """The process's exit code: what fails outweighs what is missing."""
    if conclusion.failed:
        return ExitCode.FAILED
    return ExitCode.INFRASTRUCTURE if conclusion.kind is Kind.INCOMPLETE else ExitCode.GOOD


def lines(result: ConformanceResult) -> Iterable[str]:
    """Return a result as lines for a terminal: the rules that were exercised, the findings, the verdict."""
    yield f"{'rule':<8} {'verdict':<12} {'passed':>9} {'failed':>7} {'known':>7} {'unchecked':>9}"
    for rule in result.rules:
        if rule.verdict == NOT_EXERCISED or (rule.verdict == NOT_CHECKED and not rule.not_checked):
            continue
        yield (
            f"{rule.id:<8} {rule.verdict:<12} {rule.passed:>9} {rule.failed:>7} {rule.deviations:>7} "
            f"{rule.not_checked:>9}"
        )
        yield from (f"         not checked: {reason}" for reason in rule.not_checked_reasons)
    idle = [rule.id for rule in result.rules if rule.verdict == NOT_EXERCISED]
    if idle:
        yield f"not exercised: {' '.join(idle)}"
    for found in result.nonconformances:
        yield f"\nNONCONFORMANCE {found.explanation}"
    for deviation in result.deviations:
        private = f" -- {TELL_FIRST}" if deviation.report_privately else ""
        yield f"\nDEVIATION {deviation.id} {deviation.status} ({deviation.count}x){private}"
        yield deviation.evidence
    yield ""
    yield from (f"gap: {gap}" for gap in result.gaps)
    yield from (f"note: {note}" for note in result.notes)
    yield f"{result.events_checked} events, {result.failed} nonconformances: {result.verdict}"
