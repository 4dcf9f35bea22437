# SPDX-License-Identifier: GPL-2.0-or-later
"""Output on the terminal. Results go to stdout; progress, remarks and errors go to stderr.

On a terminal, progress is shown as bars; elsewhere as plain lines, at each tenth of a task or after five seconds.
``NO_COLOR`` in the environment is obeyed. Text that may come from a guest never reaches the terminal raw.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

from framework.common.errors import MedcheckError
from framework.common.progress import SilentTask, Task
from framework.common.safe_text import duration, visible

_LINE_SECONDS = 5.0
_LINE_PERCENT = 10
_MIN_SECONDS = 1.0


class Output:
    """The two streams of a command; as a context manager, enterable again and again, it takes bars down."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        json: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.quiet = quiet
        self.json = json
        self._stdout = stdout or sys.stdout
        self._err = _console(stderr or sys.stderr)
        self._documented = False
        self.progress = RichProgress(self._err, quiet=quiet)

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.progress.close()

    def say(self, text: str) -> None:
        """Print a remark on stderr; nothing when quiet."""
        self.progress.say(text)

    def result(self, text: str) -> None:
        """Print what the user asked for on stdout, quiet or not; with ``--json`` on stderr, as a remark."""
        if self.json:
            self.say(text)
            return
        self._stdout.write(visible(text).rstrip("\n") + "\n")
        self._stdout.flush()

    def document(self, content: object) -> None:
        """Write ``content`` on stdout as the one JSON document of this command."""
        if self._documented:
            raise ValueError("a command prints one JSON document")
        self._documented = True
        # ASCII: whatever the terminal's encoding is and a guest sent, this can be printed and parsed.
        self._stdout.write(json.dumps(content, indent=2, ensure_ascii=True) + "\n")
        self._stdout.flush()

    def finish(self, content: object, text: str) -> None:
        """Print the result: ``content`` with ``--json``, else ``text``."""
        if self.json:
            self.document(content)
        else:
            self.result(text)

    def error(self, error: MedcheckError) -> None:
        """Print what happened, where, and what to do on stderr, and as the JSON document if there is none yet."""
        self.progress.close()
        print_error(error, self._err)
        if self.json and not self._documented:
            parts = {
                "what": error.what,
                "where": error.where,
                "hint": error.hint,
                "exit_code": int(error.exit_code),
            }
            self.document({"error": parts})


def mib(text: str) -> int:
    """argparse's type of a size in MiB."""
    if not (text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a number of MiB, found {text!r}")
    return int(text)


def print_error(error: MedcheckError, console: Console | None = None) -> None:
    """Print the three parts of ``error`` on stderr: what happened, where, and what the reader can do."""
    target = console or _console(sys.stderr)
    target.print(Text.assemble(("medcheck: ", "bold red"), (visible(error.what), "bold")), soft_wrap=True)
    for label, part, style in (("where", error.where, ""), ("hint", error.hint, "green")):
        if part is not None:
            indented = visible(part).rstrip().replace("\n", "\n         ")
            target.print(Text.assemble((f"  {label + ':':<6} ", "dim"), (indented, style)), soft_wrap=True)


class RichProgress:
    """:class:`framework.common.progress.Progress`: bars on a terminal, plain lines elsewhere, nothing if quiet.

    Tasks may be opened and advanced from any thread.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._lock = threading.RLock()
        self._bars: Bars | None = None
        self._open = 0
        self._fancy = console.is_terminal and not console.is_dumb_terminal

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Begin a task of ``total`` units (None: unknown; unit ``"B"``: bytes)."""
        if self._quiet:
            return _silent()
        return self._bar(title, total, unit) if self._fancy else self._lines(title, total, unit)

    def say(self, text: str) -> None:
        """Print one line for the reader, above the bars."""
        if not self._quiet:
            self._console.print(Text(visible(text)), soft_wrap=True)

    def close(self) -> None:
        """Take the bars down, whatever is still open; tasks that go on are not shown any more."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
                self._open = 0

    @contextmanager
    def _bar(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        with self._lock:
            if self._bars is None:
                self._bars = _bars(self._console)
                self._bars.start()
            bars = self._bars
            self._open += 1
            number = bars.add_task(visible(title), total=total, unit=unit)
        begin = self._clock()
        try:
            yield _Bar(bars, number)
        except BaseException:
            self._end(bars, number, None)
            raise
        self._end(bars, number, f"{visible(title)}: {_done(bars.tasks[_index(bars, number)].completed, unit)}"
                  f"{duration(self._clock() - begin)}")  # fmt: skip

    def _end(self, bars: Bars, number: TaskID, line: str | None) -> None:
        with self._lock:
            if line is not None:
                self._console.print(Text.assemble(("✓ ", "green"), line), soft_wrap=True)
            bars.remove_task(number)
            if self._bars is bars:
                self._open -= 1
                if self._open == 0:
                    # Nothing draws between tasks: the terminal belongs to its owner then (a shell, pytest).
                    bars.stop()
                    self._bars = None

    @contextmanager
    def _lines(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        task = _Lines(title, total, unit, self.say, self._clock)
        self.say(f"{title} …")
        begin = self._clock()
        try:
            yield task
        except BaseException:
            self.say(f"{title}: stopped after {duration(self._clock() - begin)}")
            raise
        self.say(f"{title}: {_done(task.done, unit)}{duration(self._clock() - begin)}")


class _Bar:
    """A task shown as a bar."""

    def __init__(self, bars: Bars, number: TaskID) -> None:
        self._bars = bars
        self._number = number

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._number, amount)


class _Lines:
    """A task that prints a line now and then."""

    def __init__(
        self, title: str, total: int | None, unit: str, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self.done = 0
        self._title, self._total, self._unit = title, total, unit
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self._said_at = clock()
        self._said_percent = 0

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            self.done += amount
            now = self._clock()
            percent = min(100, 100 * self.done // self._total) if self._total else None
            tenth = percent is not None and percent >= self._said_percent + _LINE_PERCENT
            if now - self._said_at < (_MIN_SECONDS if tenth else _LINE_SECONDS) or percent == 100:
                return
            self._said_at = now
            if percent is None:
                text = _amount(self.done, self._unit)
            else:
                self._said_percent = percent - percent % _LINE_PERCENT
                whole = _amount(self._total or 0, self._unit)
                text = f"{percent} % ({_amount(self.done, self._unit, bare=True)} of {whole})"
        self._say(f"{self._title}: {text}")


class _AmountColumn(ProgressColumn):
    """``12 of 130 cases``, ``4.2 of 90.1 MB``."""

    def render(self, task: BarTask) -> Text:
        unit = str(task.fields["unit"])
        if task.total is None:
            return Text(_amount(task.completed, unit) if task.completed else "")
        return Text(f"{_amount(task.completed, unit, bare=True)} of {_amount(task.total, unit)}")


def _bars(console: Console) -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        _AmountColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _index(bars: Bars, number: TaskID) -> int:
    return bars.task_ids.index(number)


def _amount(value: float, unit: str, *, bare: bool = False) -> str:
    if unit == "B":
        return f"{value / 1e6:.1f}" if bare else f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}" if bare or not unit else f"{value:,.0f} {unit}"


def _done(value: float, unit: str) -> str:
    return f"{_amount(value, unit)}, " if value else ""


def _console(stream: TextIO) -> Console:
    """A rich console that is a terminal only if the stream is one, whatever the environment claims."""
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


@contextmanager
def _silent() -> Iterator[Task]:
    yield SilentTask()
