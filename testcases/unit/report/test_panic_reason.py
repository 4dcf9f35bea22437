# SPDX-License-Identifier: GPL-2.0-or-later
"""A panic whose reason stands on the next line, on the report's time line."""

from __future__ import annotations

from pathlib import Path

from framework.report import timeline


def test_a_panic_with_its_reason_is_found_on_the_time_line(tmp_path: Path) -> None:
    (tmp_path / "xen.log").write_bytes(
        b"[     0.100] (XEN) \n[     1.000] (XEN) ****\n"
        b"[     1.000] (XEN) Panic on CPU 0:\n[     1.001] (XEN) the reason\n"
    )
    content = {
        "consoles": [{"name": "xen", "file": "xen.log"}],
        "problems": [
            {"console": "xen", "text": "(XEN) Panic on CPU 0: the reason"},
            {"console": "all", "text": "and 3 more lines of the same kinds, not kept: 3 linux-bug on guest0"},
        ],
    }
    marked = [(line.text, line.problem) for line in timeline.merged(content, tmp_path) if line.problem is not None]
    assert marked == [("(XEN) Panic on CPU 0:", 0)]
