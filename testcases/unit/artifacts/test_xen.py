# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether hypervisor and toolstack fit: what an image says of itself, which tools are taken, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from framework.artifacts import xen as xen_module
from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import Builder
from framework.artifacts.lock import Lock
from framework.artifacts.overrides import OPTIONS, Overrides
from framework.artifacts.xen import frozen, provide
from framework.artifacts.xen_image import XenImage, arguments_for, unchecked
from framework.artifacts.xen_tools import PROGRAMS, Toolstack, given_tools
from framework.common.errors import InfrastructureError, UsageError
from framework.common.progress import Silent
from testcases.unit.artifacts.xen_tree import make_tree


def image(
    path: Path, release: str = "4.17", *marks: bytes, tee: bytes = b"Using TEE mediator for %s\n\0OP-TEE\0"
) -> Path:
    path.write_bytes(b"".join((tee, *marks, f"\0xen,xen-{release}\0xen,xen\0".encode())))
    return path


def test_an_image_says_its_release_and_its_mediators(tmp_path: Path) -> None:
    path = image(tmp_path / "xen", "4.21", b"FF-A\0", b"Using TEE mediator for %s (selected from command line)\n\0")
    assert XenImage.read(path) == XenImage("4.21", ("OP-TEE", "FF-A"), True)
    assert arguments_for(path) == "tee=optee"
    assert arguments_for(image(tmp_path / "old")) == ""


@pytest.mark.parametrize(
    ("tee", "words"),
    [
        (b"", "without a TEE mediator"),
        (b"Using TEE mediator for %s\n\0FF-A\0", "a mediator for FF-A, but none for OP-TEE"),
    ],
)
def test_an_image_without_the_mediator_is_refused(tmp_path: Path, tee: bytes, words: str) -> None:
    with pytest.raises(InfrastructureError) as caught:
        XenImage.read(image(tmp_path / "xen", tee=tee))
    assert words in caught.value.what
    assert "CONFIG_OPTEE=y" in (caught.value.hint or "")


def elf(sections: tuple[str, ...] = (), machine: int = 183) -> bytes:
    """An ELF file for arm64 with empty sections of these names."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    kinds = {".symtab": (2, 24), ".shstrtab": (3, 0)}
    headers, at = [bytes(64)], 1
    for name in (*sections, ".shstrtab"):
        kind, entry = kinds.get(name, (1, 0))
        link = len(sections) + 1 if name == ".symtab" else 0
        size = len(names) if name == ".shstrtab" else 0
        headers.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64, size, link, 0, 1, entry))
        at += len(name) + 1
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    table = 64 + len(names)
    head += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, table, 0, 64, 56, 0, 64, len(headers), len(headers) - 1)
    return head + names + b"".join(headers)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (elf((".symtab", ".debug_info")), None),
        (elf((".symtab",)), "no DWARF"),
        (elf(), "stripped"),
        (b"text", "cannot be read as ELF"),
    ],
)
def test_what_symbols_lack_is_said(tmp_path: Path, content: bytes, words: str | None) -> None:
    path = tmp_path / "xen-syms"
    path.write_bytes(content)
    found = unchecked(path)
    assert found is None if words is None else words in (found or "")
    assert "no rule can be checked" in (unchecked(None) or "")


def installed(folder: Path, release: str = "4.20", *, prefix: str = "usr", machine: int = 183) -> Path:
    """A toolstack as `make install` leaves it."""
    places = {"xl": "sbin", "xenstored": "sbin", "xenconsoled": "sbin", "xenstore": "bin"}
    for name in PROGRAMS:
        path = folder / prefix / places.get(name, "lib/xen/bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(elf(machine=machine))
    library = folder / prefix / f"lib/libxenctrl.so.{release}"
    library.with_name(f"{library.name}.0").write_bytes(elf(machine=machine))
    library.symlink_to(f"{library.name}.0")
    return folder


@pytest.mark.parametrize("prefix", ["usr", "usr/local"])
def test_given_tools_are_laid_out_like_the_pinned_ones(tmp_path: Path, prefix: str) -> None:
    folder = installed(tmp_path / "dest", prefix=prefix)
    tools = given_tools(folder, Lock.load(), BuildCache(tmp_path / "cache"))
    assert (tools.release, tools.origin) == ("4.20", "user")
    assert {path.name for path in (tools.folder / "usr/lib/xen/bin").iterdir()} == set(PROGRAMS)
    assert (tools.folder / "usr/lib/xen/lib/libxenctrl.so.4.20").is_file()
    # The neutral layout is one that may be given again: for the stimuli of the same run.
    again = given_tools(tools.folder, Lock.load(), BuildCache(tmp_path / "cache"))
    assert again.release == "4.20"


def test_given_tools_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    lock, cache = Lock.load(), BuildCache(tmp_path / "cache")
    with pytest.raises(UsageError, match="has no xl, xenstored"):
        given_tools(tmp_path, lock, cache)
    with pytest.raises(UsageError, match="EM_X86_64, dom0 is arm64"):
        given_tools(installed(tmp_path / "x86", machine=62), lock, cache)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """One whose builds are told apart by their version only."""
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    image(pinned / "xen")
    (pinned / "xen-syms").write_bytes(elf((".symtab", ".debug_info")))
    monkeypatch.setattr(Builder, "xen", lambda _self, _variant: pinned)
    monkeypatch.setattr(xen_module, "pinned_tools", lambda *_: Toolstack(tmp_path, "4.17", "4.17.5", "pinned"))
    monkeypatch.setattr(
        xen_module, "built_tools", lambda source, *_: Toolstack(tmp_path, source.release, source.version, "built")
    )

    def hypervisor(source, *_):  # type: ignore[no-untyped-def]
        own = tmp_path / "own"
        own.mkdir(exist_ok=True)
        image(own / "xen", source.release)
        (own / "xen-syms").write_bytes(elf((".symtab", ".debug_info")))
        return own

    monkeypatch.setattr(xen_module, "build_hypervisor", hypervisor)
    return Builder(None, Lock.load(), BuildCache(tmp_path / "cache"), Silent())  # type: ignore[arg-type]


def newer(release: str = "4.20", domctl: str = "17") -> dict[str, str | None]:
    major, minor = release.split(".")
    return {
        "xen__Makefile": f"export XEN_VERSION = {major}\nexport XEN_SUBVERSION = {minor}\n"
        "export XEN_EXTRAVERSION ?= .4\n",
        "xen__include__public__domctl.h": f"#define XEN_DOMCTL_INTERFACE_VERSION 0x000000{domctl}\n",
    }


@pytest.mark.parametrize(
    ("changes", "origin", "version"),
    [({}, "pinned", "4.17.5"), (newer(), "built", "4.20.4"), (newer("4.17", "16"), "built", "4.17.4"),
     (newer("4.18", "15"), "built", "4.18.4")],
)  # fmt: skip
def test_a_tree_gets_the_pinned_tools_only_where_release_and_interfaces_agree(
    builder: Builder, tmp_path: Path, changes: dict[str, str | None], origin: str, version: str
) -> None:
    xen = provide(Overrides(xen_tree=make_tree(tmp_path / "tree", **changes)), builder)
    assert (xen.tools.origin, xen.tools.version, xen.origin) == (origin, version, "user")
    assert xen.version.startswith(f"{version}, no git, configuration medcheck's")
    assert "mediator OP-TEE" in xen.said[0]


def test_hypervisor_and_tools_of_two_releases_are_refused_with_what_to_do(builder: Builder, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        provide(Overrides(xen=image(tmp_path / "xen", "4.20")), builder)
    assert "this Xen is 4.20 and dom0's tools are 4.17" in caught.value.what
    assert "--xen-tree DIR" in (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"dom0's tools are 4\.17"):
        tree = make_tree(tmp_path / "tree", **newer())
        provide(Overrides(xen_tree=tree, xen_tools="pinned"), builder)
    tree = make_tree(tmp_path / "tree", **newer())
    xen = provide(Overrides(xen=image(tmp_path / "xen", "4.20"), xen_tree=tree), builder)
    assert (xen.image, xen.tools.version) == (tmp_path / "xen", "4.20.4")
    with pytest.raises(UsageError, match=r"is Xen 4\.21, the tree of --xen-tree is 4.20"):
        provide(Overrides(xen=image(tmp_path / "xen", "4.21"), xen_tree=tree), builder)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"xen_rev": "a"}, "--xen-rev goes with --xen-tree"),
        ({"xen": Path("x"), "xen_config": Path("c")}, "--xen and --xen-config"),
        ({"xen": Path("x"), "xen_patch": (Path("p"),)}, "--xen and --xen-patch"),
        ({"xen": Path("x"), "cc": "clang"}, "--xen and --cc"),
        ({"xen": Path("x"), "xen_tools": "tree"}, "--xen-tools tree needs --xen-tree"),
    ],
)
def test_options_that_contradict_each_other_are_refused(builder: Builder, given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        provide(Overrides(**given), builder)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_what_is_missing_is_said_before_anything_boots(builder: Builder, tmp_path: Path) -> None:
    xen = provide(Overrides(xen=image(tmp_path / "xen", "4.17", b"selected from command line\0")), builder)
    assert "tee=optee goes on its command line" in xen.said[1]
    assert "no rule can be checked" in xen.said[2]
    (tmp_path / "nameless").write_bytes(b"Using TEE mediator for \0OP-TEE\0")
    assert "does not tell its release" in provide(Overrides(xen=tmp_path / "nameless"), builder).said[1]


def test_the_stimuli_of_a_run_get_the_very_xen_of_the_run(builder: Builder, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", **newer())
    given = Overrides(xen_tree=tree, xen_patch=(), xen_tools="tree", kernel=tmp_path)
    xen = provide(given, builder)
    fixed = frozen(given, xen)
    assert (fixed.xen, fixed.xen_syms, fixed.xen_tools) == (xen.image, xen.symbols, xen.tools.folder)
    assert fixed.xen_tree is None
    assert fixed.kernel == tmp_path


def test_every_override_has_an_option_and_the_words_say_the_same() -> None:
    assert {name.replace("-", "_") for name in OPTIONS} == set(Overrides.__dataclass_fields__)
    given = Overrides(xen_tree=Path("/t"), xen_patch=(Path("/a"), Path("/b")), xen_rev="v1")
    assert given.words() == [
        "xen-tree=/t", "xen-rev=v1", "xen-patch=/a", "xen-patch=/b", "xen-tools=auto", "xen-variant=debug",
    ]  # fmt: skip
