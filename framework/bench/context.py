# SPDX-License-Identifier: GPL-2.0-or-later
"""Context of every benchmark."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from framework.artifacts.stack import Overrides, Stack
from framework.common.progress import Progress
from framework.target.stack import open_store, prepare_stack


@dataclass(frozen=True)
class Context:
    """Inputs of a benchmark: the command line, the user's own parts, and the sink of progress."""

    options: argparse.Namespace
    overrides: Overrides
    progress: Progress

    def stack(self) -> Stack:
        """The stack to measure, fetched and built when that has not been done."""
        store = open_store(self.options.offline, self.options.mirror, self.progress)
        return prepare_stack(self.overrides, store, self.progress)
