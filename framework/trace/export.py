# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as NDJSON: one JSON object a line, for other tools.

Numbers that are 64 bits wide (registers, addresses, cookies, entries) are strings in hexadecimal, because
JSON readers lose bits above 2**53; counts, ids and times are JSON numbers. Data is base64, without the
trailing zeros of ``size`` bytes.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import IO, Any

from framework.trace.event import Block, Event
from framework.trace.format import BlockFlag, BlockKind, Flag, Kind
from framework.trace.writer import pack_block, pack_record


def event_to_json(event: Event) -> dict[str, Any]:
    """One event as a JSON object; :func:`json_to_record` is the way back."""
    return {
        "seq": event.seq,
        "kind": Kind(event.kind).name,
        "flags": [flag.name for flag in event.flags],
        "cpu": event.cpu,
        "el": event.el,
        "time_ns": event.time_ns,
        "domain": event.domain,
        "vcpu": event.vcpu,
        "vmid": event.vmid,
        "parent": event.parent,
        "pc": hex(event.pc),
        "esr": hex(event.esr),
        "imm": event.imm,
        "regs": [hex(value) for value in event.regs],
        "blocks": [_block_to_json(block) for block in event.blocks()],
    }


def _block_to_json(block: Block) -> dict[str, Any]:
    return {
        "kind": block.kind.name,
        "flags": [flag.name for flag in block.flags],
        "level": block.level,
        "index": block.index,
        "size": block.size,
        "count": block.count,
        "ipa": hex(block.ipa),
        "ma": hex(block.ma),
        "pte": hex(block.pte),
        "cookie": hex(block.cookie),
        "data": b64encode(block.data).decode(),
    }


def json_to_record(item: dict[str, Any]) -> bytes:
    """The record that :func:`event_to_json` described."""
    blocks = [
        pack_block(
            BlockKind[block["kind"]],
            b64decode(block["data"]),
            flags=sum(BlockFlag[name] for name in block["flags"]),
            level=block["level"],
            index=block["index"],
            size=block["size"],
            count=block["count"],
            ipa=int(block["ipa"], 16),
            ma=int(block["ma"], 16),
            pte=int(block["pte"], 16),
            cookie=int(block["cookie"], 16),
        )
        for block in item["blocks"]
    ]
    return pack_record(
        Kind[item["kind"]],
        item["seq"],
        [int(value, 16) for value in item["regs"]],
        blocks,
        flags=sum(Flag[name] for name in item["flags"]),
        cpu=item["cpu"],
        el=item["el"],
        time_ns=item["time_ns"],
        domain=item["domain"],
        vmid=item["vmid"],
        vcpu=item["vcpu"],
        parent=item["parent"],
        pc=int(item["pc"], 16),
        esr=int(item["esr"], 16),
        imm=item["imm"],
    )


def export(events: Iterable[Event], stream: IO[str]) -> int:
    """Write all events to ``stream``; returns how many."""
    count = 0
    for event in events:
        stream.write(json.dumps(event_to_json(event), separators=(",", ":")) + "\n")
        count += 1
    return count
