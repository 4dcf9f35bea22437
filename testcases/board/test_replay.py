"""Deterministic clones: the same input gives the same trace, to the bit."""

from __future__ import annotations

import hashlib
import time

import pytest

from framework.board.clone import clone
from framework.moments import READY, template
from framework.session import _trace_options

RUNS = 10
_INPUT = 'echo "xtest -t regression 1004" >/dev/pts/0; sleep 4; poweroff -f'
"""Types into the first domU's console; ends the board, so that a trace has an end."""


@pytest.mark.slow
def test_the_same_input_gives_the_same_trace_ten_times(boards, stack, spec, tmp_path):
    hashes = set()
    with template(boards._store, spec, stack, READY) as found:
        for number in range(RUNS):
            folder = tmp_path / str(number)
            trace = folder / "trace" / "board.trace"
            options = _trace_options(spec, stack, trace)
            with clone(found, spec, stack, folder, deterministic=True, paused=True, **options) as board:
                console = board.consoles["dom0"]
                console.sendline(_INPUT)
                # The board stands still: QEMU takes the input before the first instruction runs.
                end = time.monotonic() + 30
                while console.unread and time.monotonic() < end:
                    time.sleep(0.01)
                assert console.unread == 0
                board.resume()
                assert board.wait_end(120)
            assert trace.stat().st_size > 100_000
            hashes.add(hashlib.sha256(trace.read_bytes()).hexdigest())
    assert len(hashes) == 1
