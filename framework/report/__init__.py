# SPDX-License-Identifier: GPL-2.0-or-later
"""Files about a run: ``report.json`` and ``junit.xml`` for machines, ``index.html``, ``summary.md`` to read.

A job fills :mod:`framework.report.model`; :mod:`framework.report.write` writes the files.
Nothing here decides anything: verdicts come in and are shown.
"""
