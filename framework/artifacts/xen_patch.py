# SPDX-License-Identifier: GPL-2.0-or-later
"""Patches to files in memory, and words for those that do not apply."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from framework.common.errors import InfrastructureError, UsageError

_NAME = re.compile(r"^(?:---|\+\+\+) (?:[ab]/)?([^\t\n]+)", re.M)
_OLD = re.compile(r"^--- (?:a/)?([^\t\n]+)", re.M)
_FAILED = re.compile(r"Hunk #(\d+) FAILED at (\d+)")
_SHOWN = 8


def apply_patch(files: Mapping[str, Any], patch: Path, make: Callable[..., Any]) -> dict[str, Any]:
    """``files`` (by path; what ``make`` makes of bytes) with one patch in git's or diff's form applied.

    :raises UsageError: it is no patch, or does not apply: the text has file and hunk, and what stands there instead.
    :raises InfrastructureError: the host has no `patch`.
    """
    try:
        text = patch.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"--xen-patch: {patch} cannot be read: {error.strerror}") from error
    names = [name.strip() for name in _NAME.findall(text)]
    touched = list(dict.fromkeys(name for name in names if name != "/dev/null"))
    if not touched or "@@" not in text:
        raise UsageError(f"--xen-patch: {patch} is no patch", hint="the output of `git diff` or `git format-patch`")
    if outside := [name for name in touched if name.startswith("/") or ".." in name.split("/")]:
        raise UsageError(f"--xen-patch: {patch} would change {outside[0]}, outside of the tree")
    result = dict(files)
    with tempfile.TemporaryDirectory(prefix="medcheck-patch-") as scratch:
        for name in touched:
            if name in files:
                path = Path(scratch, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[name].data)
                path.chmod(0o755 if files[name].executable else 0o644)
        _run(patch, scratch, text, files)
        for name in touched:
            path = Path(scratch, name)
            if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(scratch)):
                # What it leads to may be any file of this machine.
                raise UsageError(
                    f"--xen-patch: {patch} makes {name} a symbolic link",
                    hint="apply it to a tree of your own, and name that with --xen-tree",
                )
            if path.is_file():
                result[name] = make(path.read_bytes(), bool(path.stat().st_mode & 0o100))
            else:
                result.pop(name, None)
    return result


def _run(patch: Path, scratch: str, text: str, files: Mapping[str, Any]) -> None:
    command = ["patch", "-p1", "--batch", "--forward", "--no-backup-if-mismatch", "--reject-file=-", "-i"]
    try:
        done = subprocess.run([*command, str(patch.absolute())], cwd=scratch, capture_output=True, check=False)
    except FileNotFoundError:
        raise InfrastructureError("the program `patch` is missing", hint="install your package `patch`") from None
    if done.returncode == 0:
        return
    said = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    name, failed = None, None
    for line in said.splitlines():
        if line.startswith("patching file "):
            name = line.removeprefix("patching file ").strip("'\"")
        elif failed := _FAILED.search(line):
            break
    hint = "make it anew against this tree, or name another tree with --xen-tree"
    if "previously applied" in said:
        raise UsageError(f"--xen-patch: {patch} is in the tree already, or a part of it is", hint="leave it out")
    if name is None or failed is None:
        missing = next((old for old in _OLD.findall(text) if old != "/dev/null" and old not in files), None)
        why = f"the tree has no {missing}" if missing else said.strip()
        raise UsageError(f"--xen-patch: {patch} does not apply: {why}", hint=hint)
    number = int(failed[1])
    start, wanted = _hunk(text, name, number)
    have = files[name].data.decode(errors="replace").splitlines() if name in files else []
    at = next((i for i, (a, b) in enumerate(zip(wanted, have[start - 1 :], strict=False)) if a != b), 0)
    first = start + at
    shown = [f"    {first + i}: {words}" for i, words in enumerate(have[first - 1 : first - 1 + _SHOWN])]
    stands = "\n".join(shown) or "    (the file ends before)"
    expected = wanted[at] if at < len(wanted) else ""
    raise UsageError(
        f"--xen-patch: {patch} does not apply: hunk {number} of {name} expects at line {first}\n    {expected}\n"
        f"  what stands there:\n{stands}",
        hint=hint,
    )


def _hunk(text: str, name: str, number: int) -> tuple[int, list[str]]:
    """Line number and text of what a hunk wants to find."""
    section = re.search(rf"^\+\+\+ (?:[ab]/)?{re.escape(name)}[\t\n].*?(?=^--- |\Z)", text, re.M | re.S)
    body = section[0] if section else text
    hunks = list(re.finditer(r"^@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*\n((?:[ +\-\\].*\n|\n)*)", body, re.M))
    if not 1 <= number <= len(hunks):
        return 1, []
    found = hunks[number - 1]
    wanted = [line[1:] for line in found[2].split("\n") if line[:1] in (" ", "-")]
    return max(int(found[1]), 1), wanted
