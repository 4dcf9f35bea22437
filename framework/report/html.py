"""``index.html``."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from framework.report.markdown import summary


def render(content: Mapping[str, Any], folder: Path) -> str:  # noqa: ARG001 - the consoles follow
    """The page."""
    return (
        f"<!doctype html><meta charset=utf-8><title>medcheck</title><pre>{escape(summary(content))}</pre>\n"
    )
