# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of version 0.1 that the command line still takes in 0.2; their use is reported, and --help does not show
them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from framework.common.terminal import Output

COMMANDS = {"template": "snapshot"}
"""Commands by their names of 0.1."""

VARIABLES = {"MEDCHECK_TEMPLATES_MIB": "MEDCHECK_SNAPSHOTS_MIB"}
"""Variables of the environment by their names of 0.1."""


class Former(argparse.Action):
    """An option by the name that it had: stores its value as the option ``const`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the value, and remember that the old name was used."""
        setattr(namespace, self.dest, values)
        used = [*getattr(namespace, "former", ()), f"{option_string} is now {self.const}"]
        namespace.former = used


def add_option(command: argparse.ArgumentParser, old: str, new: str, **settings: Any) -> None:
    """Let ``command`` take the option ``new`` by its ``old`` name as well."""
    dest = new.removeprefix("--").replace("-", "_")
    command.add_argument(
        old, dest=dest, const=new, action=Former, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **settings
    )


def tell(options: argparse.Namespace, output: Output) -> None:
    """Name each old name that was used, and the new one."""
    used = list(getattr(options, "former", ()))
    used += [f"`{old}` is now `{new}`" for old, new in COMMANDS.items() if options.command == old]
    used += [f"{old} is now {new}" for old, new in VARIABLES.items() if os.environ.get(old)]
    for text in used:
        output.say(f"{text}; the old name goes with 0.3")
