# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage of the mediator's source by a run: lines, branches and functions, as lcov and Cobertura have them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from framework.report.model import CoverageReport
from framework.trace.coverage import Coverage
from framework.trace.xen_code import MediatorCode


@dataclass(slots=True)
class SourceFile:
    """One source file: executions by line; by line the ways of its branches (None: the branch never ran, else whether
    this way was gone); functions as (name, line, executions)."""

    path: str
    lines: dict[int, int] = field(default_factory=dict)
    branches: dict[int, list[bool | None]] = field(default_factory=dict)
    functions: list[tuple[str, int, int]] = field(default_factory=list)

    def report(self) -> CoverageReport:
        """Summarise for a report."""
        ways = [way for found in self.branches.values() for way in found]
        return CoverageReport(
            file=self.path,
            lines=len(self.lines),
            lines_seen=sum(count > 0 for count in self.lines.values()),
            branches=len(ways),
            branches_seen=sum(way is True for way in ways),
            functions=len(self.functions),
            functions_seen=sum(count > 0 for _, _, count in self.functions),
            not_seen=spans(sorted(self.lines), {line for line, count in self.lines.items() if not count}),
        )


def source_files(code: MediatorCode, coverage: Coverage) -> list[SourceFile]:
    """Map executed instructions to the lines that they belong to.

    A line ran when an instruction of it did. A branch is a conditional branch of the binary, so what the compiler made
    without one (a select, say) has none, and a copy of an inlined function has its own.
    """
    files = [SourceFile(path) for path in code.files]
    counts = coverage.counts
    for row in code.rows:
        lines = files[row.file].lines
        ran = max((counts.get(address, 0) for address in range(row.start, row.end, 4)), default=0)
        lines[row.line] = max(lines.get(row.line, 0), ran)
    for branch in code.branches:
        found = files[branch.file].branches.setdefault(branch.line, [])
        gone = coverage.outcomes.get(branch.address, 0)
        found += [bool(gone & bit) if gone else None for bit in (1, 2) if branch.outcomes & bit]
    for function in code.functions:
        files[function.file].functions.append((function.name, function.line, counts.get(function.start, 0)))
    return files


def spans(lines: Sequence[int], chosen: set[int]) -> str:
    """The chosen ones of ``lines`` in words: ``171-176, 203``; a span goes on over lines that have no code."""
    found: list[list[int]] = []
    open_span = False
    for line in lines:
        if line in chosen:
            if open_span:
                found[-1][1] = line
            else:
                found.append([line, line])
        open_span = line in chosen
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def lcov(files: Iterable[SourceFile]) -> bytes:
    """An lcov tracefile (``geninfo`` format)."""
    return ("\n".join(_lcov_lines(files)) + "\n").encode()


def _lcov_lines(files: Iterable[SourceFile]) -> Iterator[str]:
    for file in files:
        yield "TN:medcheck"
        yield f"SF:{file.path}"
        for name, line, _ in file.functions:
            yield f"FN:{line},{name}"
        for name, _, count in file.functions:
            yield f"FNDA:{count},{name}"
        yield f"FNF:{len(file.functions)}"
        yield f"FNH:{sum(count > 0 for _, _, count in file.functions)}"
        for line, ways in sorted(file.branches.items()):
            for number, way in enumerate(ways):
                yield f"BRDA:{line},0,{number},{'-' if way is None else int(way)}"
        summary = file.report()
        yield f"BRF:{summary.branches}"
        yield f"BRH:{summary.branches_seen}"
        for line, count in sorted(file.lines.items()):
            yield f"DA:{line},{count}"
        yield f"LF:{summary.lines}"
        yield f"LH:{summary.lines_seen}"
        yield "end_of_record"


def cobertura(files: Sequence[SourceFile], timestamp: int) -> bytes:
    """A Cobertura report (``coverage-04.dtd``)."""
    sums = [file.report() for file in files]
    lines, seen = sum(s.lines for s in sums), sum(s.lines_seen for s in sums)
    ways, gone = sum(s.branches for s in sums), sum(s.branches_seen for s in sums)
    root = ET.Element("coverage", {
        "line-rate": _rate(seen, lines), "branch-rate": _rate(gone, ways), "lines-valid": str(lines),
        "lines-covered": str(seen), "branches-valid": str(ways), "branches-covered": str(gone), "complexity": "0",
        "version": "medcheck", "timestamp": str(timestamp),
    })  # fmt: skip
    ET.SubElement(ET.SubElement(root, "sources"), "source").text = "."
    package = ET.SubElement(ET.SubElement(root, "packages"), "package", {
        "name": "mediator", "line-rate": _rate(seen, lines), "branch-rate": _rate(gone, ways), "complexity": "0",
    })  # fmt: skip
    classes = ET.SubElement(package, "classes")
    for file, s in zip(files, sums, strict=True):
        found = ET.SubElement(classes, "class", {
            "name": file.path.rpartition("/")[2], "filename": file.path, "line-rate": _rate(s.lines_seen, s.lines),
            "branch-rate": _rate(s.branches_seen, s.branches), "complexity": "0",
        })  # fmt: skip
        ET.SubElement(found, "methods")
        rows = ET.SubElement(found, "lines")
        for line, count in sorted(file.lines.items()):
            ET.SubElement(rows, "line", _cobertura_line(line, count, file.branches.get(line, ())))
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _cobertura_line(line: int, count: int, ways: Sequence[bool | None]) -> dict[str, str]:
    found = {"number": str(line), "hits": str(count), "branch": "true" if ways else "false"}
    if ways:
        gone = sum(way is True for way in ways)
        found["condition-coverage"] = f"{100 * gone // len(ways)}% ({gone}/{len(ways)})"
    return found


def _rate(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "1"
