"""Entry point of ``python -m framework.cli``."""

from framework.cli.main import main

main()
