# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point of ``python -m framework.cli``."""

from framework.cli.main import main

main()
