# SPDX-License-Identifier: GPL-2.0-or-later
"""What reaches stdout and stderr: on a terminal, in a pipe, quiet, with --json and with NO_COLOR."""

from __future__ import annotations

import io
import json
import re
import threading
from contextlib import closing

import pytest

from framework.common.errors import BoardError, ConfigError
from framework.common.terminal import Output, RichProgress, print_error

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*\d[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def story(output_kind: type[io.StringIO] = io.StringIO, **options: bool) -> tuple[str, str]:
    """(stdout, stderr) of a command that does a bit of everything."""
    out, err = output_kind(), output_kind()
    with Output(stdout=out, stderr=err, **options) as output:
        output.say("a remark")
        with output.progress.task("loading", total=4, unit="files") as task:
            task.advance()
            task.advance(3)
        output.finish({"answer": 42}, "the answer is 42")
    return out.getvalue(), err.getvalue()


def test_pipe_gets_plain_lines_and_results_alone_on_stdout() -> None:
    out, err = story()
    assert out == "the answer is 42\n"
    assert re.fullmatch(r"a remark\nloading …\nloading: 4 files, \d\.\d\d s\n", err)


def test_terminal_gets_bars_and_the_bars_are_taken_down() -> None:
    out, err = story(Terminal)
    assert out == "the answer is 42\n"
    assert "\x1b[?25l" in err
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l")
    assert "✓ loading: 4 files" in ANSI.sub("", err)
    assert COLOUR.search(err)


def test_no_color_keeps_bars_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, err = story(Terminal)
    assert "loading" in err
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3\d|9\d|4\d|38|48)(?:;\d+)*m", err)


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    _, err = story(Terminal)
    assert "\x1b" not in err
    assert "loading …" in err


def test_forced_colour_does_not_reach_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, err = story()
    assert "\x1b" not in err


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_leaves_only_the_result(kind: type[io.StringIO]) -> None:
    assert story(kind, quiet=True) == ("the answer is 42\n", "")


def test_json_owns_stdout() -> None:
    out, err = story(json=True)
    assert json.loads(out) == {"answer": 42}
    assert "a remark" in err
    assert "the answer is 42" not in err


def test_json_and_result_text_do_not_mix() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(json=True, stdout=out, stderr=err)
    output.result("done")
    output.document(["\ud800", "é"])
    assert json.loads(out.getvalue()) == ["\ud800", "é"]
    assert out.getvalue().isascii()
    assert err.getvalue() == "done\n"
    with pytest.raises(ValueError, match="one JSON document"):
        output.document([])


def test_error_has_its_three_parts_on_stderr() -> None:
    out, err = io.StringIO(), io.StringIO()
    Output(quiet=True, stdout=out, stderr=err).error(
        BoardError("the board stands still", where="console xen", hint="look at\nxen.log")
    )
    assert out.getvalue() == ""
    assert err.getvalue() == (
        "medcheck: the board stands still\n  where: console xen\n  hint:  look at\n         xen.log\n"
    )


def test_error_leaves_out_parts_it_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(ConfigError("no such key"))
    assert capsys.readouterr() == ("", "medcheck: no such key\n")


def test_error_with_json_is_the_document_unless_there_is_one() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(json=True, stdout=out, stderr=err)
    output.error(ConfigError("no such key", where="a.yaml:3"))
    expected = {"what": "no such key", "where": "a.yaml:3", "hint": None, "exit_code": 2}
    assert json.loads(out.getvalue()) == {"error": expected}
    output.error(ConfigError("again"))
    assert json.loads(out.getvalue()) == {"error": expected}
    assert "medcheck: again" in err.getvalue()


def test_guest_text_never_reaches_the_terminal_raw() -> None:
    out, err = Terminal(), Terminal()
    output = Output(stdout=out, stderr=err)
    output.say("[red]x[/red] \x1b]0;title\x07")
    output.result("\x1b[2J\u202e")
    output.error(BoardError("\x1b[2J", where="\x9b2J"))
    assert "[red]x[/red] ^[]0;title^G" in err.getvalue()
    assert out.getvalue() == "^[[2J<U+202E>\n"
    assert "\x1b[2J" not in err.getvalue()
    assert "\x9b" not in err.getvalue()


def lines(steps: list[tuple[float, int]], total: int | None, unit: str = "cases") -> list[str]:
    """Lines of a task that advances by the given amounts at the given times."""
    clock, err = Clock(), io.StringIO()
    progress = RichProgress(Output(stderr=err)._err, clock=clock)
    with progress.task("xtest", total, unit) as task:
        for at, amount in steps:
            clock.now = at
            task.advance(amount)
    return err.getvalue().splitlines()


def test_a_line_at_each_tenth() -> None:
    printed = lines([(2.0 * i, 1) for i in range(1, 101)], 100)
    assert printed[1:-1] == [f"xtest: {n} % ({n} of 100 cases)" for n in printed_steps(printed)]
    assert {10, 20, 50, 90} <= set(printed_steps(printed))
    assert printed[-1] == "xtest: 100 cases, 3 min 20 s"


def printed_steps(printed: list[str]) -> list[int]:
    return [int(found[1]) for line in printed if (found := re.match(r"xtest: (\d+) %", line))]


def test_a_line_after_five_seconds_and_no_flood() -> None:
    assert len(lines([(0.01 * i, 1) for i in range(100)], 100)) == 2
    slow = lines([(i * 1.0, 1) for i in range(21)], None)
    assert slow[1:-1] == ["xtest: 6 cases", "xtest: 11 cases", "xtest: 16 cases", "xtest: 21 cases"]


def test_bytes_are_megabytes() -> None:
    assert lines([(6.0, 45_000_000)], 90_000_000, "B")[1] == "xtest: 50 % (45.0 of 90.0 MB)"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_task_that_fails_is_not_shown_as_done(kind: type[io.StringIO]) -> None:
    err = kind()
    output = Output(stderr=err)
    with pytest.raises(BoardError), output, output.progress.task("booting", 3, "steps"):
        raise BoardError("dead")
    assert "✓" not in err.getvalue()
    assert "booting: 0" not in err.getvalue()
    if kind is Terminal:
        assert err.getvalue().rindex("\x1b[?25h") > err.getvalue().rindex("\x1b[?25l")
    else:
        assert "booting: stopped after" in err.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_tasks_from_many_threads(kind: type[io.StringIO]) -> None:
    err = kind()
    output = Output(stderr=err)

    def work(number: int) -> None:
        with output.progress.task(f"part {number}", 50, "files") as task:
            for _ in range(50):
                task.advance()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = ANSI.sub("", err.getvalue())
    assert all(f"part {n}: 50 files" in text for n in range(6))


def test_closing_with_a_task_open_leaves_a_usable_terminal() -> None:
    err = Terminal()
    output = Output(stderr=err)
    task = output.progress.task("xtest", 2, "cases")
    with task as running:
        with closing(output.progress):
            running.advance()
        running.advance()
        output.say("still here")
    assert "still here" in err.getvalue()
    assert err.getvalue().count("\x1b[?25h") == err.getvalue().count("\x1b[?25l")
