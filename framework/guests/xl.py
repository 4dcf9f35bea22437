# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's toolstack as a typed API: ``xl`` in dom0, few commands per connection, its errors put into words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from framework.common.errors import GuestError, UsageError
from framework.common.safe_text import number
from framework.guests.ssh import Completed

Value = str | int | list[str]
Run = Callable[[str, bytes], Completed]
"""Runs a command in dom0's shell with this standard input."""

ATTACH = "/usr/lib/medcheck/attach-console"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_ROW = re.compile(
    r"(?P<name>.{0,200}\S)\s+(?P<id>[0-9]+)\s+(?P<mem>[0-9]+)\s+(?P<vcpus>[0-9]+)\s+(?P<state>[a-z-]{6,20})\s+"
    r"(?P<time>[0-9]{1,18}(?:\.[0-9]{1,18})?)\s*"
)
_MOST_ROWS, _LONGEST_ROW = 4096, 400
"""Lines of ``xl list``, and characters of a line, that are read."""
_DOMID = re.compile(rb"^domid ([0-9]+)\s*$", re.MULTILINE)
_OUTPUT_HEAD = 1 << 16

_SIGNAL = 128
"""What a shell adds to the number of the signal that killed a program."""
TOOLS_HINT = "Xen's tools do not work in dom0: build them from Xen's tree (--xen-tools tree), or try the pinned ones"

_ERROR_LINE = re.compile(r"\berror: ")
_OTHER_LEVEL = re.compile(r"\b(?:info|debug|detail|progress|notice|verbose|warning): ")
_CONSEQUENCE = re.compile(
    r": -[0-9]{1,9}\s*\Z|mem_init failed|build_dom failed|cannot \(re-\)build|[Nn]on-existant domain"
    r"|[Uu]nable to destroy|[Dd]estruction of domain|failed to destroy|cannot open libxc handle"
)
"""Errors that pass on another one."""


@dataclass(frozen=True)
class _Cause:
    """Meaning of a failed statement of xl or its libraries; ``tee``: for a guest with OP-TEE only."""

    statement: re.Pattern[str]
    hint: str
    tee: bool = False


_CAUSES = (
    _Cause(re.compile("already exists"), "destroy the other domain first"),
    _Cause(
        re.compile(
            "not enough memory|failed to free memory|can(?:'t|not) allocate (?:low )?memory"
            "|domain creation fail: Cannot allocate memory",
            re.IGNORECASE,
        ),
        "give the guest or dom0 less memory, or the board more (images/boards/*.yaml)",
    ),
    _Cause(
        re.compile("privileged command interface: No such (?:file|device)"),
        "dom0's kernel lacks xen-privcmd (CONFIG_XEN_PRIVCMD, or the module is not loaded)",
    ),
    _Cause(
        re.compile("(?:domain creation fail|getting physinfo|getting domain info(?: list)?): Permission denied"),
        "Xen and dom0's tools are of different versions: use a hypervisor of the tools' release",
    ),
    _Cause(
        re.compile(r"(?:file|image|kernel|ramdisk)\b.{0,200}: No such file or directory"),
        "kernel and ramdisk are paths in dom0",
    ),
    _Cause(
        re.compile("domain creation fail: Invalid argument"),
        'Xen has no mediator for `tee = "optee"`: build it with CONFIG_TEE=y and CONFIG_OPTEE=y,'
        " and OP-TEE with CFG_NS_VIRTUALIZATION=y",
        tee=True,
    ),
    _Cause(
        re.compile("domain creation fail: No such device"),
        "OP-TEE takes no more guests: CFG_VIRT_GUEST_COUNT counts dom0, too",
        tee=True,
    ),
)
"""Statements that are known; no other one is explained. ENOMEM, EACCES, EINVAL and ENODEV mean other things in other
calls."""


@dataclass(frozen=True)
class GuestConfig:
    """One domain to create; ``kernel`` and ``ramdisk`` are paths in dom0, ``extra`` other keys of xl.cfg(5).

    A domain that ends is destroyed at once: its end can be seen, and OP-TEE gets its partition back.
    """

    name: str
    kernel: str
    ramdisk: str | None = None
    cmdline: str = ""
    memory_mib: int = 256
    vcpus: int = 1
    tee: bool = True
    network: bool = True
    extra: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what xl would misread."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"'{self.name}' is no name for a domain", hint="letters, digits, '.', '_', '-'; at most 63"
            )
        for key in self.extra:
            if not _KEY.fullmatch(key):
                raise UsageError(f"'{key}' is no key of an xl configuration", where=f"guest {self.name}")

    def render(self) -> str:
        """The configuration as xl reads it (xl.cfg(5))."""
        values: dict[str, Value] = {"name": self.name, "kernel": self.kernel}
        if self.ramdisk is not None:
            values["ramdisk"] = self.ramdisk
        if self.cmdline:
            values["extra"] = self.cmdline
        values |= {"memory": self.memory_mib, "vcpus": self.vcpus}
        if self.tee:
            values["tee"] = "optee"
        if self.network:
            values["vif"] = ["bridge=xenbr0"]
        values |= {"on_poweroff": "destroy", "on_reboot": "destroy", "on_crash": "destroy"}
        values |= self.extra
        return "".join(f"{key} = {_render(value)}\n" for key, value in values.items())


@dataclass(frozen=True)
class DomainInfo:
    """One line of ``xl list``. ``state`` holds the letters of xl(1): r b p s c d, ``-`` for the others;
    ``seconds`` is the CPU time used."""

    domid: int
    name: str
    memory_mib: int
    vcpus: int
    state: str
    seconds: float


class Xl:
    """The domains of one board, managed through dom0."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def create(self, config: GuestConfig, *, paused: bool = True) -> int:
        """Create a domain and return its domid.

        Raises GuestError with xl's own words and what they mean here.
        """
        return self._create(config, [] if paused else ["xl unpause $id"])

    def create_attached(self, config: GuestConfig, port_name: str, *, paused: bool = False) -> int:
        """Create a domain, join its console with a virtio-serial port of dom0 before it prints anything, and
        let it run (unless ``paused``): one command in dom0, because each costs up to half a second."""
        steps = [_attach("$id", port_name)]
        first = _port_known(port_name)
        return self._create(config, steps if paused else [*steps, "xl unpause $id"], first)

    def attach_console(self, domid: int, port_name: str) -> None:
        """Join the console of ``domid`` with the port ``port_name``; an older domain's console leaves it."""
        self._checked(f"{_port_known(port_name)} && {_attach(str(int(domid)), port_name)}")

    def list(self) -> list[DomainInfo]:
        """Return all domains, dom0 first."""
        return parse_list(self._checked("xl list").text)

    def find(self, domid: int) -> DomainInfo | None:
        """The domain with this domid, None when it is gone."""
        done = self._run(f"xl list {int(domid)}", b"")
        if done.rc != 0 and b"does not exist" not in done.stderr:
            done.check()
        return next((info for info in parse_list(done.text) if info.domid == domid), None)

    def domid(self, name: str) -> int:
        """The domid of the domain called ``name``; raises GuestError when there is none."""
        said = self._checked(f"xl domid {shlex.quote(name)}").text.strip()
        try:
            return number(said)
        except ValueError:
            raise GuestError(f"`xl domid {name}` said no number: {said[:80]!r}", where="dom0") from None

    def pause(self, domid: int) -> None:
        """Stop the virtual CPUs of a domain."""
        self._checked(f"xl pause {int(domid)}")

    def unpause(self, domid: int) -> None:
        """Let the virtual CPUs of a domain run."""
        self._checked(f"xl unpause {int(domid)}")

    def pin(self, *places: tuple[int, int, int]) -> None:
        """Have virtual CPUs run on one CPU alone, each given as (domain, virtual CPU, CPU)."""
        self._checked(" && ".join(f"xl vcpu-pin {int(domid)} {int(vcpu)} {int(cpu)}" for domid, vcpu, cpu in places))

    def destroy(self, domid: int) -> None:
        """End a domain at once, as if its power were cut."""
        self._checked(f"xl destroy {int(domid)}")

    def info(self) -> dict[str, str]:
        """Return ``xl info``: facts about the hypervisor and the machine, by its own names."""
        pairs = (line.partition(":") for line in self._checked("xl info").text.splitlines())
        return {key.strip(): value.strip() for key, sign, value in pairs if sign}

    def log(self) -> str:
        """Xen's message buffer (``xl dmesg``); slow."""
        return self._checked("xl dmesg").text

    def _create(self, config: GuestConfig, steps: Sequence[str], first: str = "true") -> int:
        file = f"/run/medcheck-{config.name}.cfg"
        # A domain that is there but of no use would keep its name and its OP-TEE partition.
        rest = f"{{ {{ {' && '.join([*steps, 'echo domid $id'])}; }} || {{ xl destroy $id; false; }}; }}"
        script = [first, f"cat >{file}", f"xl create -q -p {file} >&2", f"id=$(xl domid {config.name})", rest]
        done = self._run(" && ".join(script), config.render().encode())
        match = _DOMID.search(done.stdout[:_OUTPUT_HEAD])
        if done.rc != 0 or match is None:
            raise _creation_failed(config, done)
        return number(match[1])

    def _checked(self, command: str) -> Completed:
        return self._run(command, b"").check()


def parse_list(text: str) -> list[DomainInfo]:
    """Read ``xl list``; lines that are no domain (the header, warnings) are passed over."""
    rows = (_ROW.fullmatch(line[:_LONGEST_ROW]) for line in text[: _MOST_ROWS * _LONGEST_ROW].split("\n")[:_MOST_ROWS])
    return [
        DomainInfo(
            number(row["id"]), row["name"], number(row["mem"]), number(row["vcpus"]), row["state"], float(row["time"])
        )
        for row in rows
        if row
    ]


def _port_known(port_name: str) -> str:
    """A shell command that is true when dom0 has this console port."""
    if not _NAME.fullmatch(port_name):
        raise UsageError(f"'{port_name}' is no name of a console port")
    return (
        f"{{ grep -qx {port_name} /sys/class/virtio-ports/*/name"
        f" || {{ echo 'no virtio-serial port is called {port_name}' >&2; false; }}; }}"
    )


def _attach(domid: str, port_name: str) -> str:
    """A shell command that is true once the console is joined in the background.

    A port can be opened once only: what holds it for a domain that is gone ends first. xenconsoled keeps
    what the domain prints meanwhile.
    """
    pid, log = f"/run/attach-{port_name}.pid", f"/run/attach-{port_name}.log"
    # The number may have gone to another process since, hence the look at what it is.
    freed = (
        f"{{ old=$(cat {pid} 2>/dev/null);"
        " while grep -qs xenconsole /proc/${old:-none}/cmdline; do kill $old; sleep 0.1; done; }"
    )
    joined = f"{{ setsid {ATTACH} {domid} {port_name} </dev/null >{log} 2>&1 & echo $! >{pid}; }}"
    return f"{freed} && {joined}"


def _render(value: Value) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(_render(item) for item in value)} ]"
    if isinstance(value, int):
        return str(int(value))
    if not value.isprintable():
        raise UsageError(f"{value!r} cannot stand in an xl configuration")
    # Escapes as libxlu's lexer knows them (tools/libs/util/libxlu_cfg_l.l).
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def how_it_ended(code: int) -> str:
    """A shell's exit code of a program in words."""
    return f"killed by signal {code - _SIGNAL}" if code > _SIGNAL else f"exit code {code}"


def _creation_failed(config: GuestConfig, done: Completed) -> GuestError:
    said = done.stderr[-_OUTPUT_HEAD:].decode(errors="replace").strip()
    tail = "\n".join(f"    {line[:_LONGEST_ROW]}" for line in said.splitlines()[-8:]) or "    (it said nothing)"
    return GuestError(
        f"the domain was not created ({how_it_ended(done.rc)}); xl said:\n{tail}",
        where=f"guest {config.name}",
        hint=_hint(said, tee=config.tee) or (TOOLS_HINT if done.rc > _SIGNAL else None),
    )


def _hint(said: str, *, tee: bool) -> str | None:
    """Return what the failed statement means; None for an unknown one.

    That is the last line marked as an error that does not just pass on another one; without such marks, any line that
    is not marked as something else.
    """
    lines = [line[:_LONGEST_ROW] for line in said.splitlines()[-200:]]
    errors = [line for line in lines if _ERROR_LINE.search(line) and not _CONSEQUENCE.search(line)]
    plain = [line for line in lines if not _ERROR_LINE.search(line) and not _OTHER_LEVEL.search(line)]
    for line in errors[-1:] or plain[::-1]:
        for cause in _CAUSES:
            if cause.statement.search(line) and (tee or not cause.tee):
                return cause.hint
    return None
