# SPDX-License-Identifier: GPL-2.0-or-later
"""Resolves ``packages.yaml`` against what the archive offers now, and writes the lock file."""

from __future__ import annotations

import contextlib
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cmp_to_key
from itertools import zip_longest
from pathlib import Path

import yaml

from framework.artifacts.download import Downloader
from framework.artifacts.lock import Lock, Pin, check_pin, names
from framework.artifacts.mirror import Mirrors
from framework.artifacts.store import Store
from framework.common.errors import ArtifactError, ConfigError
from framework.common.progress import Progress, Silent
from framework.common.yaml_source import Source

_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"
_PARTS = {"orig": re.compile(r"\.orig\.tar\.\w+$"), "debian": re.compile(r"\.debian\.tar\.\w+$")}
_KEYRINGS = ("usr/share/keyrings/debian-archive-keyring.gpg", "usr/share/keyrings/debian-archive-keyring.pgp")


@dataclass(frozen=True)
class PackageRequest:
    """One package of ``packages.yaml``; ``arch`` is ``source`` for a source package.

    ``package`` may hold ``*``, for packages such as kernels that carry their version in the name.
    """

    group: str
    suite: str
    arch: str
    package: str
    version: str | None
    where: str

    @property
    def index(self) -> str:
        """The archive's index that lists it, below the suite's folder."""
        return "main/source/Sources.xz" if self.arch == "source" else f"main/binary-{self.arch}/Packages.xz"

    def names(self, package: str) -> bool:
        """Whether ``package`` is the requested one."""
        return fnmatchcase(package, self.package)

    def accepts(self, version: str) -> bool:
        """Whether ``version`` is a requested one."""
        if self.version is None:
            return True
        if self.version.endswith("*"):
            return version.startswith(self.version[:-1])
        return version == self.version


@dataclass(frozen=True)
class LockDiff:
    """Difference between an old and a new lock file."""

    added: tuple[Pin, ...] = ()
    removed: tuple[Pin, ...] = ()
    changed: tuple[tuple[Pin, Pin], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def lines(self) -> list[str]:
        """One line for each pin that differs: ``+`` new, ``-`` gone, ``~`` changed."""
        result = [f"+ {pin.name} {pin.version} ({_size(pin)})" for pin in self.added]
        result += [f"- {pin.name} {pin.version} ({_size(pin)})" for pin in self.removed]
        for old, new in self.changed:
            if old.version != new.version:
                change = f"{old.version} -> {new.version}"
            elif old.sha256 != new.sha256:
                change = f"{new.version}: same version, OTHER CONTENT"
            else:
                change = f"{new.version}: moved to {new.path}"
            result.append(f"~ {new.name} {change} ({_size(old)} -> {_size(new)})")
        return result


def update(
    packages: Path, lock: Path, mirrors: Mirrors, progress: Progress | None = None, *, unsigned: bool = False
) -> LockDiff:
    """Pin what the archive offers now, and write ``lock`` if that differs.

    Indexes are accepted only with the hash in the suite's release file, and that only with a good signature of
    Debian's archive. ``unsigned`` accepts, and says so, a release file that has none, or that cannot be checked here;
    a bad signature is never accepted.

    :raises ConfigError: ``packages.yaml`` is malformed.
    :raises ArtifactError: the archive lacks a package or version (``where`` is its line), or an index is not
        genuine.
    """
    progress = progress or Silent()
    requests = read_requests(packages)
    before = Lock.load(lock, resolve_sources=False) if lock.exists() else Lock({}, lock)
    found = _resolve(requests, mirrors, progress, unsigned)
    labels: dict[str, list[str]] = {}
    for request in requests:
        labels.setdefault(request.group, []).extend(pin.name for pin in found[request])
    unique = names(labels)
    groups: dict[str, tuple[Pin, ...]] = {}
    for request in requests:
        pins = [replace(pin, name=unique[request.group, pin.name]) for pin in found[request]]
        groups[request.group] = groups.get(request.group, ()) + tuple(_with_sources(pin, before) for pin in pins)
    after = Lock(groups, lock)
    difference = compare(before, after)
    if difference or tuple(before.groups) != tuple(after.groups):
        after.save()
    return difference


def compare(before: Lock, after: Lock) -> LockDiff:
    """The difference between two lock files, in the order of their pins."""
    old, new = before.pins, after.pins
    return LockDiff(
        tuple(pin for name, pin in new.items() if name not in old),
        tuple(pin for name, pin in old.items() if name not in new),
        tuple((old[name], pin) for name, pin in new.items() if name in old and old[name] != pin),
    )


def read_requests(path: Path) -> list[PackageRequest]:
    """Read ``packages.yaml``.

    :raises ConfigError: with ``file:line``, whatever is wrong with it.
    """
    source = Source(path, "see the comments at the top of packages.yaml")
    top = source.record(source.root(), "the file", ("groups",))
    requests: list[PackageRequest] = []
    for group, selections in source.mapping(top["groups"], "groups").items():
        for selection in source.items(selections, f"group {group}"):
            entry = source.record(selection, f"group {group}", ("suite",), ("arch", "packages", "sources"))
            suite = source.text(entry["suite"], "suite")
            if ("packages" in entry) == ("sources" in entry):
                raise source.error(selection, f"group {group}: give either packages (with arch) or sources")
            if ("arch" in entry) != ("packages" in entry):
                raise source.error(selection, f"group {group}: arch belongs to packages, and only there")
            arch = source.text(entry["arch"], "arch") if "arch" in entry else "source"
            for item in source.items(entry.get("packages", entry.get("sources", selection)), f"group {group}"):
                requests += _requests(source, item, group, suite, arch)
    _refuse_repeats(requests)
    return requests


def _requests(source: Source, item: yaml.Node, group: str, suite: str, arch: str) -> Iterator[PackageRequest]:
    where = f"{source.path}:{item.start_mark.line + 1}"
    if isinstance(item, yaml.ScalarNode):
        yield PackageRequest(group, suite, arch, source.text(item, "a package"), None, where)
        return
    for name, version in source.mapping(item, f"a package of group {group}").items():
        yield PackageRequest(group, suite, arch, name, source.text(version, f"{name}: version"), where)


def _refuse_repeats(requests: list[PackageRequest]) -> None:
    seen: set[tuple[str, str]] = set()
    for request in requests:
        if (request.group, request.package) in seen:
            raise ConfigError(f"{request.package} occurs twice in group {request.group}", where=request.where)
        seen.add((request.group, request.package))


def _resolve(
    requests: list[PackageRequest], mirrors: Mirrors, progress: Progress, unsigned: bool
) -> dict[PackageRequest, list[Pin]]:
    """Return the pins of every request; binary pins are named after the package, source pins after package and part."""
    releases = {
        suite: _release(suite, mirrors, progress, unsigned)
        for suite in dict.fromkeys(request.suite for request in requests)
    }
    indexes: dict[tuple[str, str], Pin] = {}
    for request in requests:
        if (request.suite, request.index) not in indexes:
            indexes[request.suite, request.index] = _index_pin(request, releases[request.suite])
    found: dict[PackageRequest, list[Pin]] = {}
    with tempfile.TemporaryDirectory(prefix="medcheck-lock-") as folder:
        files = Store(Path(folder), mirrors, progress=progress).fetch(indexes.values())
        with progress.task("reading indexes", total=len(indexes), unit="files") as task:
            for (suite, index), pin in indexes.items():
                asked = [request for request in requests if (request.suite, request.index) == (suite, index)]
                offered = _offered(files[pin.name], asked)
                for request in asked:
                    found[request] = _picked(request, offered[request])
                task.advance()
    return found


def _release(suite: str, mirrors: Mirrors, progress: Progress, unsigned: bool) -> str:
    """The text of a suite's release file, whose signature is good unless ``unsigned``."""
    downloader = Downloader(mirrors)
    text = None
    with contextlib.suppress(ArtifactError):
        text = downloader.text(f"dists/{suite}/InRelease")
    if text is None:
        # Outside the other's handling: the error about this one must not repeat that one.
        text = downloader.text(f"dists/{suite}/Release")
    keyrings = [str(path) for path in (Path("/") / name for name in _KEYRINGS) if path.is_file()]
    program = shutil.which("gpgv")
    if not text.startswith(_SIGNED):
        _insist(suite, "the release file is not signed", "use another mirror", progress, unsigned)
    elif program is None or not keyrings:
        lacking = "gpgv" if program is None else "debian-archive-keyring"
        cure = f"install {lacking}"
        _insist(suite, f"its signature cannot be checked, for {lacking} is not installed", cure, progress, unsigned)
    else:
        text = verified_text(text, suite, [program, "--keyring", keyrings[0]])
    names = re.findall(r"^(?:Suite|Codename): *(\S+)", text, re.MULTILINE)
    if suite not in names:
        # A good signature, but of something else: an older release, say, whose packages have known holes.
        raise ArtifactError(
            f"the release file of {suite} is that of {' or '.join(names) or 'no suite'}", hint="use another mirror"
        )
    return text


def _insist(suite: str, what: str, cure: str, progress: Progress, unsigned: bool) -> None:
    """Accept a missing signature only where the user has asked for that."""
    if not unsigned:
        raise ArtifactError(
            f"{suite}: {what}, and anyone between here and the archive could pin anything",
            hint=f"{cure}; or give --unsigned, and check the difference with care",
        )
    progress.say(f"{suite}: {what}; check the difference with care")


def verified_text(text: str, suite: str, gpgv: list[str]) -> str:
    """Return what was signed in ``text``, as ``gpgv`` prints it after checking the signature."""
    with tempfile.TemporaryDirectory(prefix="medcheck-gpgv-") as folder:
        signed, plain = Path(folder, "InRelease"), Path(folder, "Release")
        signed.write_text(text, encoding="utf-8")
        done = subprocess.run([*gpgv, "--output", str(plain), str(signed)], capture_output=True, text=True, check=False)
        if done.returncode or not plain.is_file():
            raise ArtifactError(
                f"the release file of {suite} has no good signature:\n{done.stderr.strip()}",
                hint="use another mirror, and make sure that debian-archive-keyring is up to date",
            )
        return plain.read_text(encoding="utf-8")


def _index_pin(request: PackageRequest, release: str) -> Pin:
    section = re.search(r"^SHA256:\n((?: .*\n?)*)", release, re.MULTILINE)
    for line in section[1].splitlines() if section else ():
        sha256, size, name = (*line.split(), "", "", "")[:3]
        if name == request.index:
            path = f"dists/{request.suite}/{name}"
            if re.search(r"^Acquire-By-Hash: yes$", release, re.MULTILINE):
                # The plain name may already be of the next publication; the hash's never is.
                path = f"{path.rsplit('/', 1)[0]}/by-hash/SHA256/{sha256}"
            length = int(size) if re.fullmatch("[0-9]{1,12}", size) else 0
            pin = Pin(f"{request.suite}/{name}", path, "current", length, sha256)
            check_pin(pin, request.where)
            return pin
    raise ArtifactError(f"suite {request.suite} has no {request.index}", where=request.where)


def _offered(index: Path, requests: list[PackageRequest]) -> dict[PackageRequest, list[Mapping[str, str]]]:
    """Return what an index offers for each request."""
    result: dict[PackageRequest, list[Mapping[str, str]]] = {request: [] for request in requests}
    try:
        with lzma.open(index, "rt", encoding="utf-8") as stream:
            stanza: list[str] = []
            for line in stream:
                if line != "\n":
                    stanza.append(line)
                    continue
                _add_stanza(stanza, result)
                stanza = []
            _add_stanza(stanza, result)
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ArtifactError(f"the index cannot be read: {error}", where=index.name) from error
    return result


def _add_stanza(lines: list[str], result: dict[PackageRequest, list[Mapping[str, str]]]) -> None:
    first = next((line for line in lines if line.startswith("Package:")), "")
    package = first.partition(":")[2].strip()
    asked = [request for request in result if request.names(package)]
    if not asked:
        return
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        if line[0] in " \t" and key:
            fields[key] += "\n" + line.strip()
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    for request in asked:
        result[request].append(fields)


def _picked(request: PackageRequest, stanzas: list[Mapping[str, str]]) -> list[Pin]:
    try:
        pins = _pick(request, stanzas)
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"the index has a malformed entry for {request.package}: {error}",
            where=request.where,
            hint="use another mirror",
        ) from error
    for pin in pins:
        check_pin(pin, request.where)
    return pins


def _pick(request: PackageRequest, stanzas: list[Mapping[str, str]]) -> list[Pin]:
    """Return the newest version that a request accepts."""
    if not stanzas:
        raise ArtifactError(
            f"suite {request.suite} has no package {request.package} ({request.arch})",
            where=request.where,
            hint="name its successor or another suite in packages.yaml",
        )
    fitting = [stanza for stanza in stanzas if request.accepts(stanza["Version"])]
    if not fitting:
        offered = ", ".join(stanza["Version"] for stanza in stanzas)
        raise ArtifactError(
            f"{request.package}: suite {request.suite} offers {offered}, but {request.version} is asked for",
            where=request.where,
            hint="change the version in packages.yaml, or keep the present pins and set MEDCHECK_SNAPSHOT",
        )
    best = max(fitting, key=lambda stanza: version_key(stanza["Version"]))
    if request.arch != "source":
        return [Pin(best["Package"], best["Filename"], best["Version"], int(best["Size"]), best["SHA256"])]
    pins = []
    for part, pattern in _PARTS.items():
        for line in best["Checksums-Sha256"].split("\n"):
            sha256, size, name = line.split() if line.strip() else ("", "0", "")
            if pattern.search(name):
                path = f"{best['Directory']}/{name}"
                pins.append(Pin(f"{request.package}.{part}", path, best["Version"], int(size), sha256))
    if len(pins) != len(_PARTS):
        raise ArtifactError(
            f"source package {request.package} {best['Version']} is not one orig and one debian archive",
            where=request.where,
        )
    return pins


def _with_sources(pin: Pin, before: Lock) -> Pin:
    """Copy the further sources that a user gave: folders always, a file's URL only while it is the same file."""
    old = before.pins.get(pin.name)
    if old is None:
        return pin
    return replace(pin, sources=tuple(s for s in old.sources if old.sha256 == pin.sha256 or "://" not in s))


def _size(pin: Pin) -> str:
    return f"{pin.size / 1e6:.1f} MB" if pin.size >= 100_000 else f"{pin.size / 1e3:.0f} kB"


def _weight(character: str) -> int:
    """dpkg's order within the parts that are not digits: ``~``, the end, letters, everything else."""
    if character == "~":
        return -1
    return ord(character) + (0 if character.isalpha() else 256) if character else 0


def _compare_part(left: str, right: str) -> int:
    """dpkg's comparison of an upstream version or revision: texts and numbers in turn."""
    while left or right:
        texts = [re.match(r"\D*", side)[0] for side in (left, right)]  # type: ignore[index]
        for one, other in zip_longest(*texts, fillvalue=""):
            if difference := _weight(one) - _weight(other):
                return difference
        left, right = left[len(texts[0]) :], right[len(texts[1]) :]
        numbers = [re.match(r"\d*", side)[0] for side in (left, right)]  # type: ignore[index]
        if difference := int(numbers[0] or 0) - int(numbers[1] or 0):
            return difference
        left, right = left[len(numbers[0]) :], right[len(numbers[1]) :]
    return 0


def compare_versions(left: str, right: str) -> int:
    """Below, at or above zero as ``left`` is before, equal to or after ``right`` (deb-version(7))."""
    parts = []
    for version in (left, right):
        epoch, colon, rest = version.partition(":")
        upstream, _, revision = (rest if colon else version).rpartition("-")
        parts.append((epoch if colon else "0", upstream or revision, revision if upstream else "0"))
    return next((d for a, b in zip(*parts, strict=True) if (d := _compare_part(a, b))), 0)


version_key = cmp_to_key(compare_versions)
"""Sorts Debian versions."""
