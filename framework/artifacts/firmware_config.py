# SPDX-License-Identifier: GPL-2.0-or-later
"""``images/firmware.yaml``: how OP-TEE OS, TF-A and Xen are built, read line by line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from framework.common.paths import IMAGES
from framework.common.yaml_source import Source

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{1,16}")
XEN_VARIANTS = ("debug", "release")
_HINT = "correct the line; `git diff images/firmware.yaml` shows what has changed since it was good"


@dataclass(frozen=True)
class MakeRecipe:
    """A build by make: the lock file's group of its sources, make variables, and patches below ``images``."""

    group: str
    make: Mapping[str, str]
    patches: tuple[str, ...] = ()


@dataclass(frozen=True)
class XenTools:
    """The pinned toolstack: the lock file's group, and what a Xen must have to take orders from it: its release
    (``4.17``) and its numbers of the two interfaces."""

    group: str
    release: str
    domctl: int
    sysctl: int


@dataclass(frozen=True)
class XenRecipe:
    """Xen's builds: the lines of its configuration, and those that each variant adds; its pinned toolstack."""

    group: str
    tools: XenTools
    config: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FirmwareConfig:
    """The file as a whole; ``epoch`` is the time (seconds since 1970) that builds print."""

    epoch: int
    optee: MakeRecipe
    tfa: MakeRecipe
    xen: XenRecipe

    @classmethod
    def load(cls, path: Path = IMAGES / "firmware.yaml") -> FirmwareConfig:
        """Read the file.

        :raises ConfigError: with ``file:line``, whatever is wrong with it.
        """
        source = Source(path, _HINT)
        top = source.record(source.root(), "the file", ("source_date_epoch", "optee", "tfa", "xen"))
        epoch = source.text(top["source_date_epoch"], "source_date_epoch")
        if not (epoch.isdecimal() and len(epoch) < 12):
            raise source.error(top["source_date_epoch"], "source_date_epoch: expected a number of seconds since 1970")
        optee, tfa = (_make_recipe(source, top[name], name) for name in ("optee", "tfa"))
        for name in ("CFG_TZDRAM_START", "CFG_TZDRAM_SIZE"):
            if not _ADDRESS.fullmatch(optee.make.get(name, "")):
                raise source.error(top["optee"], f"optee: make: expected {name} as an address like 0xf0000000")
        xen = source.record(top["xen"], "xen", ("group", "tools", "config", "variants"))
        variants = source.record(xen["variants"], "xen: variants", XEN_VARIANTS)
        return cls(
            int(epoch),
            optee,
            tfa,
            XenRecipe(
                source.text(xen["group"], "xen: group"),
                _xen_tools(source, xen["tools"]),
                _texts(source, xen["config"], "xen: config"),
                {name: _texts(source, node, f"xen: variant {name}") for name, node in variants.items()},
            ),
        )

    @property
    def secure_window(self) -> tuple[int, int]:
        """Return the firmware's secure RAM for OP-TEE: address and size in bytes."""
        return int(self.optee.make["CFG_TZDRAM_START"], 16), int(self.optee.make["CFG_TZDRAM_SIZE"], 16)

    @property
    def groups(self) -> tuple[str, ...]:
        """The lock file's groups of all sources."""
        return self.optee.group, self.tfa.group, self.xen.group


def _make_recipe(source: Source, node: yaml.Node, name: str) -> MakeRecipe:
    entry = source.record(node, name, ("group", "make"), ("patches",))
    make = source.mapping(entry["make"], f"{name}: make")
    return MakeRecipe(
        source.text(entry["group"], f"{name}: group"),
        {key: source.text(value, f"{name}: {key}") for key, value in make.items()},
        _texts(source, entry["patches"], f"{name}: patches") if "patches" in entry else (),
    )


def _xen_tools(source: Source, node: yaml.Node) -> XenTools:
    entry = source.record(node, "xen: tools", ("group", "release", "domctl", "sysctl"))
    texts = {key: source.text(value, f"xen: tools: {key}") for key, value in entry.items()}
    for key in ("domctl", "sysctl"):
        if not re.fullmatch("0x[0-9a-f]{1,8}", texts[key]):
            raise source.error(entry[key], f"xen: tools: {key}: expected a number such as 0x15, not {texts[key][:40]}")
    return XenTools(texts["group"], texts["release"], int(texts["domctl"], 16), int(texts["sysctl"], 16))


def _texts(source: Source, node: yaml.Node, what: str) -> tuple[str, ...]:
    return tuple(source.text(item, what) for item in source.items(node, what))
