# SPDX-License-Identifier: GPL-2.0-or-later
"""Random calls that are nearly right: function ids, registers, messages; and what may come back for them."""

from __future__ import annotations

import random

from mediator_ref.abi import FUNCTIONS, TRUSTED_OWNERS, Arg, Param, encode_arg

DEFINED_X0 = {0, 1, 4, 5, 6, 7}
INTERESTING = (
    0,
    1,
    0xFFF,
    0x1000,
    0x40000000,
    0x40400000,
    0x70000000,
    1 << 31,
    1 << 32,
    1 << 63,
    (1 << 64) - 1,
)
NEAR = tuple(FUNCTIONS)


def word(rng: random.Random) -> int:
    """A 64-bit number of the kind that finds boundaries."""
    return rng.choice([rng.choice(INTERESTING), rng.getrandbits(64), rng.getrandbits(16)])


def message(rng: random.Random) -> bytes:
    """An argument page that is nearly right in most of its fields."""
    params = tuple(
        Param(
            rng.choice([0, 1, 2, 3, 5, 6, 7, 9, 0xA, 0xB, 0x209, 0x20A, 0x20B, 0x101, rng.getrandbits(32)]),
            word(rng), word(rng), word(rng),
        )
        for _ in range(rng.randrange(6))
    )  # fmt: skip
    # Too many parameters have a test of their own (D8: x0 is not set).
    count = rng.choice([len(params), len(params), rng.randrange(128)])
    cmd = rng.choice([0, 0, 1, 1, 2, 3, 4, 5, 6, rng.getrandbits(32)])
    arg = Arg(cmd, rng.randrange(16), rng.randrange(2), 0, 0, rng.getrandbits(32), 0, count, params)
    return encode_arg(arg, fill=rng.choice([b"\0", b"\xff", b"\x5a"]))


def function_id(rng: random.Random) -> int:
    """A function of the trusted owners: a known one, one with a bit wrong, or any. x0's high half is noise."""
    known = rng.choice(NEAR)
    owner = rng.choice(TRUSTED_OWNERS)
    fid = rng.choice([
        known,
        known ^ 1 << rng.randrange(24),
        rng.getrandbits(2) << 30 | owner << 24 | rng.choice([rng.randrange(32), rng.getrandbits(24)]),
    ])  # fmt: skip
    return rng.choice([0, rng.getrandbits(32)]) << 32 | fid
