# SPDX-License-Identifier: GPL-2.0-or-later
"""The one exception hierarchy of medcheck, and the exit codes that follow from it.

Every error says what happened, where (``file:line`` of a YAML, a domain, an SMC, a console) and what the
reader can do about it. The command line prints exactly these three and never a traceback for them.
"""

from __future__ import annotations

import re
from enum import IntEnum

from framework.common.safe_text import visible

_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s'\"]*@")


def redacted(text: str) -> str:
    """``text`` without the user names and passwords of the URLs in it: for logs, reports and errors."""
    return _CREDENTIALS.sub("***@", text)


class ExitCode(IntEnum):
    """Exit codes of the process."""

    GOOD = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3


class MedcheckError(Exception):
    """Base of all errors that medcheck raises on purpose.

    ``what`` is one sentence about what happened, ``where`` names the place, ``hint`` says what to do. No password
    that an address carries gets into any of them. They may quote a guest: as text, control characters are shown.
    ``hang``: what happened is that nothing moves any more.
    """

    exit_code: ExitCode = ExitCode.INFRASTRUCTURE

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None, hang: bool = False) -> None:
        super().__init__(redacted(what))
        self.hang = hang
        self.what = redacted(what)
        self.where = None if where is None else redacted(where)
        self.hint = None if hint is None else redacted(hint)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return visible(text if self.hint is None else f"{text}\n  -> {self.hint}")


class UsageError(MedcheckError):
    """A request for something that does not exist or does not fit. Read the hint, change the command."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A YAML file is malformed; ``where`` is ``file:line`` and the text names the key and what was expected."""


class InfrastructureError(MedcheckError):
    """Something medcheck needs is missing or broke; it says nothing about the mediator under test."""


class ArtifactError(InfrastructureError):
    """A pinned file cannot be had, or is not what the lock file says it is."""


class BuildError(InfrastructureError):
    """A build of TF-A, OP-TEE OS, Xen or the trace plugin failed; ``where`` is its log."""


class BoardError(InfrastructureError):
    """The virtual board did not start, stopped, or stands still; ``where`` names the console."""


class GuestError(InfrastructureError):
    """A guest cannot be reached or does not execute a command; ``where`` names the domain."""


class GuestCrash(MedcheckError):  # noqa: N818 - the crash is the event, "Error" would say less
    """A panic, assertion, stall or vanished domain was seen on a console while a test ran."""

    exit_code = ExitCode.FAILED


class NonconformanceError(MedcheckError):
    """The mediator under test broke a rule while a job ran, which was asked to end then or cannot go on."""

    exit_code = ExitCode.FAILED


class TraceError(InfrastructureError):
    """A trace file or the trace plugin's stream cannot be read; ``where`` is ``file@offset``."""
