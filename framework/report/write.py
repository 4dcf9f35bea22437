# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a report into its folder: all files or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from framework.common.paths import atomic_write
from framework.report import html, json_report, junit, markdown
from framework.report.model import RunReport


def write_report(report: RunReport, folder: Path, extra: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """Write ``report.json``, ``junit.xml``, ``index.html`` and ``summary.md`` into ``folder``; returns the first.

    ``extra``: more files, by name.

    Console logs are read from where the report says they are. Everything is rendered and on disk before the
    first file gets its name: a failure half way (a full disk, say) leaves an older report as it was.
    ``report.json`` gets its name last: where it is new, everything is.
    """
    content = json_report.document(report, folder)
    files = {
        **(extra or {}),
        "report.json": json_report.dump(content),
        "summary.md": markdown.summary(content, terminal=False).encode(),
        "junit.xml": junit.render(content),
        "index.html": html.render(content, folder).encode(),
    }
    with ExitStack() as stack:
        for name, data in files.items():
            stream = stack.enter_context(atomic_write(folder / name))
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    return content


def point_latest(reports_root: Path, folder: Path) -> Path:
    """Let ``reports_root/latest`` name ``folder``, atomically. Returns the link."""
    link = reports_root / "latest"
    fresh = reports_root / f".latest.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(folder, reports_root), target_is_directory=True)
    try:
        fresh.replace(link)
    except OSError:
        fresh.unlink()
        raise
    return link
