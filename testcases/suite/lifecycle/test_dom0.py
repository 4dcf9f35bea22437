# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 as a client: the domain with client id 1, whose memory is always at its limit."""

from __future__ import annotations

import pytest

from framework.guests.xtest import run_xtest
from medcheck import Target

_PAGES = rb"nr_pages=(\d{1,18}) [^\r\n]{0,200}max_pages=(\d{1,18})"


def pages(target: Target) -> tuple[int, int]:
    """Return how many pages dom0, the only domain, has and may have, as Xen prints them for debug key q."""
    target.dom0.run("xl debug-keys q").check()
    match = target.board.consoles["xen"].expect([_PAGES], idle_timeout=30)
    return int(match[1]), int(match[2])


@pytest.mark.mc_core
@pytest.mark.mc_traced
@pytest.mark.mc_checkpoint("dom0")
@pytest.mark.mc_rule("CID-1", "FAST-1", "CAPS-1")
def test_dom0_loads_its_driver_again(target: Target) -> None:
    """dom0 gives its driver up and loads it again: the mediator answers it a second time as the first."""
    target.dom0.run("dmesg -c >/dev/null; rmmod optee && insmod /lib/modules/optee.ko").check()
    assert "optee: initialized driver" in target.dom0.run("dmesg").check().text
    target.dom0.run("test -c /dev/teepriv0").check()


@pytest.mark.mc_core
@pytest.mark.mc_traced
@pytest.mark.mc_checkpoint("dom0")
@pytest.mark.mc_rule("CID-1", "STD-1", "MEM-1", "RPC-1")
def test_dom0_shares_memory_though_it_may_have_no_page_more(target: Target) -> None:
    """xtest in dom0, with sessions, shared buffers and files, while Xen would refuse dom0 one page more."""
    has, may_have = pages(target)
    assert has == may_have
    target.dom0.become_client()
    result = run_xtest(target.dom0, ["1002", "1004", "6001"], alive=target.check_alive)
    assert result.good, result.reason
    assert pages(target) == (has, may_have)
