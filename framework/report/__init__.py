"""What a run found, for machines (``report.json``, ``junit.xml``) and people (``index.html``, ``summary.md``).

The run module fills :mod:`framework.report.model`; :func:`framework.report.write.write_report` writes the files.
Nothing here decides anything: verdicts come in and are shown.
"""
