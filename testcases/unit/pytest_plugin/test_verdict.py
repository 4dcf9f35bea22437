# SPDX-License-Identifier: GPL-2.0-or-later
"""A test passes only if its traces were seen from beginning to end, hold something to check, and conform."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.conformance.synthesize import write_trace
from mediator_ref.events import El3Call
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import with_register
from mediator_ref.simulator.board import Board
from testcases.unit.conformance.samples import as_traced, simple_trace

pytest_plugins = "pytester"

ALONE = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""hypothesis would be imported anew by each run, which takes longer than everything else."""

TRACED = """
    from pathlib import Path

    def test_it(judge):
        judge(Path({!r}))
"""


def good(path: Path) -> None:
    simple_trace(path)


def bad(path: Path) -> None:
    """OP-TEE gets another client's id than the caller's: STD-5."""
    board = Board()
    board.create(0)
    board.create(1)
    board.message(1, INVOKE)
    write_trace(path, as_traced(with_register(board.events, El3Call, 3, 0)))


def missing(path: Path) -> None:
    assert not path.exists()


def empty(path: Path) -> None:
    path.touch()


def without_calls(path: Path) -> None:
    write_trace(path, [])


def cut_off(path: Path) -> None:
    simple_trace(path)
    path.write_bytes(path.read_bytes()[:-40])


def damaged(path: Path) -> None:
    simple_trace(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    return pytester.runpytest(*ALONE, *options)


def test_a_trace_that_conforms_lets_a_test_pass(pytester: pytest.Pytester, tmp_path: Path) -> None:
    good(tmp_path / "board.trace")
    result = run(pytester, TRACED.format(str(tmp_path / "board.trace")))
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bad, "*the mediator does not conform (1 checks failed):*"),
        (missing, "*incomplete: the trace cannot be read, so nothing was checked:*"),
        (empty, "*incomplete: *"),
        (without_calls, "*incomplete: nothing in the trace could be checked*"),
        (cut_off, "*incomplete: *"),
        (damaged, "*incomplete: *"),
    ],
)  # fmt: skip
def test_any_other_trace_fails_the_test(pytester: pytest.Pytester, tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "board.trace")
    result = run(pytester, TRACED.format(str(tmp_path / "board.trace")))
    # The test itself has passed; its verdict comes when its boards are gone.
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([words])


def test_a_nonconformance_is_said_at_once_and_may_end_the_run(pytester: pytest.Pytester, tmp_path: Path) -> None:
    bad(tmp_path / "board.trace")
    text = TRACED.format(str(tmp_path / "board.trace")) + "\n    def test_next():\n        pass\n"
    result = run(pytester, text)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["nonconformance: STD-5 (*) in *::test_it"])
    result = run(pytester, text, "--mc-fail-fast")
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_verdict_is_added_to_another_failure_of_the_teardown(pytester: pytest.Pytester, tmp_path: Path) -> None:
    text = f"""
        from pathlib import Path
        import pytest

        @pytest.fixture
        def breaks():
            yield
            raise RuntimeError("the teardown failed")

        def test_it(judge, breaks):
            judge(Path({str(tmp_path / "absent.trace")!r}))
    """
    result = run(pytester, text)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: the teardown failed*", "*incomplete: the trace cannot be read*"])


def test_a_test_that_asks_for_a_trace_and_gets_none_fails(pytester: pytest.Pytester) -> None:
    text = """
        import pytest
        from types import SimpleNamespace

        @pytest.fixture
        def target():
            return SimpleNamespace(trace=None, board=SimpleNamespace(problems=[], consoles={}))

        @pytest.mark.mc_traced
        def test_it(target):
            pass

        @pytest.mark.mc_traced
        def test_without_a_board():
            pass

        def test_untraced(target):
            pass
    """
    result = run(pytester, text)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*incomplete: the test asks for a trace, and no board of it was traced*"])


def test_a_test_that_is_skipped_in_its_setup_has_nothing_to_vouch_for(pytester: pytest.Pytester) -> None:
    text = """
        import pytest

        @pytest.fixture
        def target():
            pytest.skip("no board here")

        @pytest.mark.mc_traced
        def test_it(target):
            pass
    """
    run(pytester, text).assert_outcomes(skipped=1)


PROBES = """
    import pytest

    @pytest.fixture
    def make_probe():
        return lambda: None

    def test_notices(make_probe):
        assert make_probe() is not None

    def test_passes_whatever_happens(make_probe):
        make_probe()

    def test_has_no_probe():
        pass
"""


def test_without_stimulus_a_probes_test_must_fail(pytester: pytest.Pytester) -> None:
    result = run(pytester, PROBES, "--mc-no-stimulus=zeros")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*test_passes_whatever_happens passes although its probe made no call*"])


def test_users_of_a_probe_are_traced_and_begin_in_dom0(pytester: pytest.Pytester) -> None:
    text = """
        import pytest

        @pytest.fixture
        def make_probe():
            return None

        def which(request):
            return request.node.get_closest_marker("mc_checkpoint").args

        def test_default(request, make_probe):
            assert which(request) == ("dom0",)
            assert request.node.get_closest_marker("mc_traced")

        @pytest.mark.mc_checkpoint("ready")
        def test_chosen(request, make_probe):
            assert which(request) == ("ready",)
    """
    run(pytester, text).assert_outcomes(passed=2)
