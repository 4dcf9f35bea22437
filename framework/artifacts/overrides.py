# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's own parts in place of pinned ones: one table for the command line, pytest and the meaning of each
option."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Overrides:
    """The user's own parts in place of the pinned ones; None, and no patch, means the pinned one."""

    xen: Path | None = None
    xen_syms: Path | None = None
    xen_tree: Path | None = None
    xen_rev: str | None = None
    xen_patch: tuple[Path, ...] = ()
    xen_config: Path | None = None
    xen_tools: str | Path = "auto"
    cc: str | None = None
    optee: Path | None = None
    optee_tree: Path | None = None
    kernel: Path | None = None
    kernel_modules: Path | None = None
    xtest_root: Path | None = None
    xen_variant: str = "debug"

    @classmethod
    def given(cls, options: Mapping[str, Any]) -> Overrides:
        """Those among a command line's parsed options; paths become absolute."""
        chosen = {field.name: _absolute(options[field.name]) for field in fields(cls)}
        chosen["xen_patch"] = tuple(chosen["xen_patch"] or ())
        return cls(**chosen)

    def words(self) -> list[str]:
        """Return the equivalent options, such as ``xen-rev=RELEASE-4.20.4``, without leading dashes."""
        found = []
        for name, value in self.__dict__.items():
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None:
                    found.append(f"{name.replace('_', '-')}={item}")
        return found

    def chosen(self) -> list[str]:
        """Return those of :meth:`words` that say something else than what is pinned."""
        usual = Overrides().words()
        return [word for word in self.words() if word not in usual]


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(item) for item in value]
    return value.absolute() if isinstance(value, Path) else value


def some_path(text: str) -> Path:
    """The type of a file or folder: an empty name (of an unset variable, say) is not this folder. Raises ValueError."""
    if not text:
        raise ValueError("expected a path, found nothing")
    return Path(text)


def some_text(text: str) -> str:
    """The type of a name. Raises ValueError for an empty one."""
    if not text:
        raise ValueError("expected a name, found nothing")
    return text


def tools_choice(text: str) -> str | Path:
    """The type of ``--xen-tools``. Raises ValueError for an empty text."""
    return text if text in ("auto", "tree", "pinned") else some_path(text)


@dataclass(frozen=True)
class Option:
    """One option of :class:`Overrides`: how a command line shows it and what its text means; ``many``: it may be
    given several times."""

    kind: Callable[[str], Any]
    metavar: str
    text: str
    many: bool = False
    default: Any = None


OPTIONS: Mapping[str, Option] = {
    "xen": Option(some_path, "FILE", "Xen's image (xen/xen)"),
    "xen-syms": Option(some_path, "FILE", "the symbols of --xen"),
    "xen-tree": Option(some_path, "DIR", "a Xen source tree: built as it is, uncommitted changes included"),
    "xen-rev": Option(some_text, "REV", "a commit of --xen-tree instead of what is checked out"),
    "xen-patch": Option(some_path, "FILE", "a patch to --xen-tree or to the pinned source; may be repeated", many=True),
    "xen-config": Option(some_path, "FILE", "Xen's configuration (default: the tree's .config if it has the mediator)"),
    "xen-tools": Option(
        tools_choice, "WHICH", "dom0's tools: auto (default), tree, pinned, or a folder they are installed in",
        default="auto",
    ),
    "cc": Option(some_text, "COMPILER", "the compiler of Xen: another gcc (gcc-11), or clang"),
    "optee": Option(some_path, "DIR", "folder with tee-{header,pager,pageable}_v2.bin"),
    "optee-tree": Option(some_path, "DIR", "an OP-TEE OS source tree: built as it is, with the board's variables"),
    "kernel": Option(some_path, "FILE", "an arm64 Image for dom0 and domUs"),
    "kernel-modules": Option(some_path, "DIR", "the modules of --kernel"),
    "xtest-root": Option(some_path, "DIR", "folder with usr/bin/xtest and its TAs"),
    "xen-variant": Option(str, "NAME", "the pinned configuration: debug (default) or release", default="debug"),
}  # fmt: skip
"""By name; the keys are the fields of :class:`Overrides`, with dashes."""


def add_options(
    add: Callable[..., Any], prefix: str, wrong: Callable[[str], Exception], names: Collection[str] = OPTIONS
) -> None:
    """Give a parser all options, or those of certain ``names``: ``add`` is its ``add_argument`` or ``addoption``,
    ``prefix`` stands before their names (``--``), and ``wrong`` makes the exception that it takes for an invalid
    text."""

    def kind_of(option: Option) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            try:
                return option.kind(text)
            except ValueError as error:
                raise wrong(str(error)) from error

        return parse

    for name, option in ((name, OPTIONS[name]) for name in names):
        more = {"action": "append"} if option.many else {}
        shown = {"default": option.default, "metavar": option.metavar, "help": option.text.replace("--", prefix)}
        add(prefix + name, type=kind_of(option), **shown, **more)
