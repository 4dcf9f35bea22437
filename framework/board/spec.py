# SPDX-License-Identifier: GPL-2.0-or-later
"""Board descriptions: images/boards/*.yaml as frozen dataclasses.

Memory is in MiB, addresses are guest-physical. Everything is checked when it is read, so every :class:`BoardSpec` can
be started.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.common import yaml_schema as y
from framework.common.errors import ConfigError, UsageError
from framework.common.paths import IMAGES

BOARDS = IMAGES / "boards"
"""The folder of the boards that come with medcheck; a board's name is its file's name without ``.yaml``."""

RAM_BASE = 0x4000_0000
"""Address of the `virt` machine's RAM (QEMU hw/arm/virt.c)."""

_XEN_OWN_MIB = 192
"""RAM for Xen itself, its heap and OP-TEE's window, beside the domains; measured generously."""

_SIZE = 1 << 21
_ADDRESS = y.Whole(RAM_BASE, 0x1_0000_0000 - _SIZE, multiple=_SIZE, base=16)
_MEMORY = y.Whole(16, 65536, unit="MiB")
_VCPUS = y.Whole(1, 8, unit="virtual CPUs")

_SCHEMA = y.Table(
    {
        "description": y.Text(r".{3,100}", "one line of text, 3 to 100 characters"),
        "machine": y.Text(r"virt(,[\w.-]+=[\w.-]+)*", "QEMU's machine line, beginning with 'virt'"),
        "cpu": y.Text(r"[\w.-]+(,[\w.=-]+)*", "a CPU model of QEMU, such as cortex-a53"),
        "smp": _VCPUS,
        "memory_mib": y.Whole(512, 65536, unit="MiB"),
        "load": y.Table({"xen": _ADDRESS, "dom0_kernel": _ADDRESS, "dom0_ramdisk": _ADDRESS}),
        "xen_args": y.Text(meaning="Xen's command line, without the dom0_mem and dom0_max_vcpus that follow from dom0"),
        "dom0": y.Table({"vcpus": _VCPUS, "memory_mib": _MEMORY, "args": y.Text(meaning="dom0's kernel arguments")}),
        "guest_slots": y.Whole(0, 16, unit="guests"),
        "guests": y.Items(
            y.Table(
                {
                    "name": y.Text(r"[a-z][a-z0-9-]{0,30}", "a name of lower-case letters, digits and dashes"),
                    "kind": y.optional(y.Choice("linux", "probe"), "linux"),
                    "vcpus": y.optional(_VCPUS, 1),
                    "memory_mib": _MEMORY,
                    "tee": y.optional(y.Flag(), True),
                }
            ),
            0,
            16,
        ),
    }
)


@dataclass(frozen=True)
class LoadMap:
    """Guest-physical addresses at which QEMU puts the files that the firmware does not carry."""

    xen: int
    dom0_kernel: int
    dom0_ramdisk: int


@dataclass(frozen=True)
class Dom0Spec:
    """The control domain: its size and its kernel's arguments."""

    vcpus: int
    memory_mib: int
    args: str


@dataclass(frozen=True)
class GuestSpec:
    """One guest domain that a board comes up with."""

    name: str
    kind: str
    vcpus: int
    memory_mib: int
    tee: bool


@dataclass(frozen=True)
class BoardSpec:
    """One board. ``guest_slots`` is how many domUs it has console ports for (dom0 is not counted)."""

    name: str
    description: str
    machine: str
    cpu: str
    smp: int
    memory_mib: int
    load_map: LoadMap
    xen_args: str
    dom0: Dom0Spec
    guests: tuple[GuestSpec, ...]
    guest_slots: int

    @classmethod
    def load(cls, name_or_path: str | Path) -> BoardSpec:
        """Read a board by its name, or from a YAML file of the user's own (anything with a ``/`` or
        ``.yaml``).

        Raises UsageError for a board that does not exist and ConfigError (``file:line``) for one that is
        wrong.
        """
        text = str(name_or_path)
        if isinstance(name_or_path, Path) or "/" in text or text.endswith(".yaml"):
            return _read(Path(text))
        known = board_names()
        if text not in known:
            near = difflib.get_close_matches(text, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "boards: " + ", ".join(known)
            raise UsageError(f"there is no board called '{text}'", hint=hint)
        return _read(BOARDS / f"{text}.yaml")

    @property
    def xen_bootargs(self) -> str:
        """Xen's whole command line: what the YAML says, and the size of dom0."""
        return f"{self.xen_args} dom0_mem={self.dom0.memory_mib}M dom0_max_vcpus={self.dom0.vcpus}"

    def with_xen_args(self, arguments: str) -> BoardSpec:
        """The board with further ``name=value`` arguments for Xen; a name that it gives already stays as it is."""
        given = {word.split("=", 1)[0] for word in self.xen_args.split()}
        more = [word for word in arguments.split() if word.split("=", 1)[0] not in given]
        return replace(self, xen_args=" ".join([self.xen_args, *more]))


def board_names() -> list[str]:
    """Return the names of the boards that come with medcheck, sorted."""
    return sorted(path.stem for path in BOARDS.glob("*.yaml"))


def all_boards() -> list[BoardSpec]:
    """Read every board that comes with medcheck."""
    return [BoardSpec.load(name) for name in board_names()]


def _read(path: Path) -> BoardSpec:
    document = y.load(path, _SCHEMA)
    values = document.values
    spec = BoardSpec(
        name=path.stem,
        description=values["description"],
        machine=values["machine"],
        cpu=values["cpu"],
        smp=values["smp"],
        memory_mib=values["memory_mib"],
        load_map=LoadMap(**values["load"]),
        xen_args=_words(values["xen_args"]),
        dom0=Dom0Spec(values["dom0"]["vcpus"], values["dom0"]["memory_mib"], _words(values["dom0"]["args"])),
        guests=tuple(GuestSpec(**guest) for guest in values["guests"]),
        guest_slots=values["guest_slots"],
    )
    _cross_check(spec, document)
    return spec


def _words(text: Any) -> str:
    """Join a command line that the YAML spreads over several lines."""
    return " ".join(str(text).split())


def _cross_check(spec: BoardSpec, document: y.Document) -> None:
    for word in ("dom0_mem", "dom0_max_vcpus"):
        if re.search(rf"(^|\s){word}=", spec.xen_args):
            raise document.error(f"{word} follows from dom0's own keys and must not be given", "xen_args")
    for option in ("memory-backend", "dumpdtb"):
        if f",{option}=" in spec.machine:
            raise document.error(f"medcheck sets {option} itself", "machine")
    if len(spec.guests) > spec.guest_slots:
        raise document.error(f"{len(spec.guests)} guests do not fit in {spec.guest_slots} guest slots", "guest_slots")
    seen: set[str] = set()
    for index, guest in enumerate(spec.guests):
        if guest.name in seen:
            raise document.error(f"two guests are called '{guest.name}'", "guests", index, "name")
        seen.add(guest.name)
    needed = _XEN_OWN_MIB + spec.dom0.memory_mib + sum(guest.memory_mib for guest in spec.guests)
    if needed > spec.memory_mib:
        raise document.error(
            f"dom0, the guests and Xen itself ({_XEN_OWN_MIB}) need {needed} MiB, expected at least that",
            "memory_mib",
        )
    end = RAM_BASE + (spec.memory_mib << 20)
    for key, address in vars(spec.load_map).items():
        if address >= end:
            raise document.error(f"{address:#x} lies behind the end of RAM at {end:#x}", "load", key)


def check_load_map(spec: BoardSpec, sizes: dict[str, int]) -> None:
    """Check that files of these sizes (keys as in LoadMap, bytes) neither overlap nor leave RAM.

    Raises ConfigError; QEMU itself would only say "rom overlaps", or nothing at all.
    """
    spans = sorted((getattr(spec.load_map, key), size, key) for key, size in sizes.items())
    limits = [address for address, _, _ in spans[1:]] + [RAM_BASE + (spec.memory_mib << 20)]
    for (address, size, key), limit in zip(spans, limits, strict=True):
        if address + size > limit:
            raise ConfigError(
                f"{key} at {address:#x} is {size} bytes long and reaches beyond {limit:#x}",
                where=f"board {spec.name}, load",
                hint="move the load addresses apart",
            )
