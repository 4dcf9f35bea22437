# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of version 0.1: options, markers and fixtures work, and each use is told with the new name."""

from __future__ import annotations

import gc

import pytest

from framework.pytest_plugin.former import MARKERS, OPTIONS

pytest_plugins = "pytester"

ALONE = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""hypothesis would be imported anew by each run, which takes longer than everything else."""

HEADING = "*names that go with 0.3, and the new ones*"
FLAGS = {"--keep-on-failure"}
VALUES = {"--domus": "3", "--board-source": "cold-shared", "--no-stimulus": "zeros"}
"""Values of options that do not take any word."""


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    # A project that makes errors of warnings must not break; what other tests left open is no warning of its own.
    gc.collect()
    return pytester.runpytest(*ALONE, "-W", "error", "--strict-markers", *options)


def options_test(pytester: pytest.Pytester, **values: object) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.parametrize("dest, value", {list(values.items())!r})
        def test_it(request, dest, value):
            assert str(request.config.getoption(dest)) == str(value)
    """)


@pytest.mark.parametrize("glued", [True, False])
def test_each_old_option_is_the_new_one(pytester: pytest.Pytester, glued: bool) -> None:
    """All in one command line: a run of pytest for each would take a tenth of the whole suite's time."""
    values = {old: VALUES.get(old, f"word{number}") for number, old in enumerate(OPTIONS) if old not in FLAGS}
    dests = {OPTIONS[old].removeprefix("--").replace("-", "_"): value for old, value in values.items()}
    options_test(pytester, **dests)
    words = [[f"{old}={value}"] if glued else [old, value] for old, value in values.items()]
    result = run(pytester, *(word for pair in words for word in pair))
    result.assert_outcomes(passed=len(values))
    result.stdout.fnmatch_lines_random([HEADING, *(f"option {old}: {OPTIONS[old]}" for old in values)])


def test_an_old_flag_is_the_new_one(pytester: pytest.Pytester) -> None:
    options_test(pytester, mc_save_on_failure=True)
    result = run(pytester, "--keep-on-failure")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([HEADING, "option --keep-on-failure: --mc-save-on-failure"])


def test_workers_know_old_options_too(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    options_test(pytester, mc_board="default")
    # In a process of its own, whose workers end with it.
    result = pytester.runpytest_subprocess(*ALONE, "-n", "1", "--board", "default")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([HEADING, "option --board: --mc-board"])


def test_an_option_of_another_plugin_stays_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--board', default='none')")
    pytester.makepyfile("""
        def test_it(request):
            assert request.config.getoption("board") == "theirs"
            assert request.config.getoption("mc_board") == "default"
    """)
    result = run(pytester, "--board", "theirs")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line(HEADING)


@pytest.mark.parametrize(("old", "new"), MARKERS.items())
def test_an_old_marker_is_the_new_one(pytester: pytest.Pytester, old: str, new: str) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.{old}("a", "b")
        def test_it(request):
            assert request.node.get_closest_marker({new!r}).args == ("a", "b")
    """)
    result = run(pytester, "-m", new)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([HEADING, f"marker {old}: {new}"])


def test_users_of_boards_can_still_be_left_out_by_the_old_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def target():
            return None

        def test_with(target):
            pass

        def test_without():
            pass
    """)
    for marker in ("board", "mc_board"):
        run(pytester, "-m", f"not {marker}").assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize(
    ("old", "new", "scope"),
    [
        ("live", "target", "function"),
        ("module_live", "module_target", "module"),
        ("cold_live", "cold_target", "function"),
        ("boards", "target_provider", "session"),
    ],
)
def test_an_old_fixture_is_the_new_one(pytester: pytest.Pytester, old: str, new: str, scope: str) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.fixture(scope={scope!r})
        def {new}():
            return "the board"

        def test_it({old}):
            assert {old} == "the board"
    """)
    result = run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([HEADING, f"fixture {old}: {new}"])


def test_new_names_are_not_told_of(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def target():
            return None

        @pytest.mark.mc_rule("STD-1")
        def test_it(target):
            pass
    """)
    result = run(pytester, "--mc-board=default")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line(HEADING)
