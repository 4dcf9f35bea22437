# SPDX-License-Identifier: GPL-2.0-or-later
"""A wait on a console of a real board that expires says whether the board is hung, idle or slow, and where it is.

TargetProvider without Xen that sleep for ever, spin or die: test_board_process.py.
"""

from __future__ import annotations

import re
import threading

import pytest

from framework.common.errors import BoardError, GuestError
from framework.diagnosis.cpu_location import parse

XEN_IDLES = re.compile(r"CPU \d at 0x[0-9a-f]+: idle_loop\+0x[0-9a-f]+ in Xen \(EL2\)")
IN_LINUX = re.compile(r"CPU (\d) at (0x[0-9a-f]+): ([\w.]+)\+(0x[0-9a-f]+) in Linux \(EL1: dom0 or a guest\)")


def silence(board, console="dom0", seconds=3.0):
    """What the error says of a wait in vain, and what the file says."""
    with pytest.raises(BoardError) as caught:
        board.consoles[console].expect(b"this never comes", idle_timeout=seconds)
    return str(caught.value), (board.run_dir / "hang.txt").read_text()


def test_an_idle_board_waits_for_interrupts_in_xens_idle_loop(board, dom0):
    dom0.run_on_console("true")
    # A guest's clean may take a CPU just then.
    for _ in range(5):
        said, written = silence(board)
        assert re.search(r"\n    idle: all CPUs wait for an interrupt \(woken [1-9]\d* times a second", said)
        if len(XEN_IDLES.findall(said)) == board.spec.smp:
            break
    else:
        pytest.fail(f"its CPUs are not in Xen's idle_loop:\n{said}")
    assert "hung" not in said
    assert f"all registers: {board.run_dir}/hang.txt" in said
    assert written.count("X30 points to idle_loop") >= 1
    assert len(parse(written)) == board.spec.smp


def test_a_stopped_board_is_hung(board, dom0):
    dom0.run_on_console("true")
    board.qmp.execute("stop")
    said, written = silence(board)
    cpus = ", ".join(f"CPU {number}" for number in range(board.spec.smp))
    assert re.search(rf"stood still for \d+\.\d s: consoles, {cpus}\n", said)
    assert "\n    hung: QEMU does not let the board run (its state is paused)" in said
    assert all(f"\n    CPU {number} at 0x" in said for number in range(board.spec.smp))
    assert "QEMU's state: paused" in written
    assert written.count("\nPSTATE=") == board.spec.smp


def test_a_guest_that_computes_in_silence_is_slow_not_hung(board, dom0, domu):
    dom0.run_on_console("true")
    domu.console.sendline("i=0; while :; do i=$((i+1)); done")
    domu.console.expect([rb"done"], idle_timeout=30)
    said, _ = silence(board, domu.console.name)
    assert re.search(r"\n    slow: code is executed \(.*CPU \d for \d+% of the time", said)
    assert "a guest (EL" in said or "in Linux (EL1" in said or "in Xen (EL2)" in said
    assert re.search(r"stood still for \d+\.\d s: consoles\n", said)


def test_a_command_over_ssh_that_is_silent_is_explained_too(board, dom0, domu):
    dom0.run_on_console("true")
    with pytest.raises(GuestError, match=r"`sleep 60`: no byte for \d+ s\n    idle: all CPUs wait for an interrupt"):
        domu.ssh.run("sleep 60", idle_timeout=4)
    stream = dom0.ssh.stream("echo begun; sleep 60", idle_timeout=4)
    lines = iter(stream)
    assert next(lines) == b"begun\n"
    board.qmp.execute("stop")
    with pytest.raises(GuestError, match=r"\n    hung: QEMU does not let the board run"):
        next(lines)


def test_a_place_in_linux_is_named_although_the_kernel_has_moved_itself(board, dom0):
    """dom0's kernel lies at a random address; its own list of symbols says whether the name is right."""
    listed = dom0.ssh.run("grep ' [tTwW] ' /proc/kallsyms").check().text.splitlines()
    addresses = {}
    for line in listed:
        address, _, name = line.split()[:3]
        addresses.setdefault(name, []).append(int(address, 16))
    everywhere = [address for found in addresses.values() for address in found]
    # Its way in from programs is mapped a second time, far above: what lies there has the name, but not the address.
    kernel = range(min(everywhere), max(everywhere))
    dom0.console.sendline("dd if=/dev/urandom of=/dev/null bs=64k")
    dom0.console.expect([rb"bs=64k"], idle_timeout=30)
    for _ in range(100):
        board.qmp.execute("stop")
        locations = parse(board.qmp.hmp("info registers -a"))
        if any(location.level == 1 and not location.secure and location.pc in kernel for location in locations):
            break
        board.qmp.execute("cont")
    said, _ = silence(board)
    named = [match for match in IN_LINUX.findall(said) if int(match[1], 16) in kernel]
    assert named, said
    for _, address, name, offset in named:
        assert int(address, 16) - int(offset, 16) in addresses[name]


@pytest.mark.mc_traced
def test_recorded_calls_are_movement_and_their_absence_is_not(board, domu, target):
    target.dom0.run_on_console("true")
    said, written = silence(board)
    assert ": consoles, SMCs\n" in said
    assert "SMCs: 0 bytes of trace" in written
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            domu.ssh.run("xtest -t regression 1004 >/dev/null")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        said, written = silence(board)
    finally:
        stop.set()
        thread.join()
    assert re.search(r"\n    running: (console .*)?SMCs were recorded", said)
    assert re.search(r"SMCs: [1-9]\d* bytes of trace", written)
