# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plugin has to know of OP-TEE, from a tee.elf: that of the image beside it, or none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from framework.common.errors import TraceError
from framework.target.stack import known_optee
from framework.trace.build import PluginOptions
from framework.trace.optee_symbols import OpteeLayout
from framework.trace.senses import Sense

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="this machine has no C compiler")

SOURCES = {
    "mm/mobj_dyn_shm.c": """
struct mobj { const void *ops; unsigned long size, granule; unsigned refc; };
struct mobj_reg_shm { struct mobj mobj; void *next; unsigned long cookie; void *mm; unsigned long page_offset;
                      unsigned mapcount; char guarded; unsigned long pages[]; };
struct mobj_reg_shm *reg_shm_list; struct mobj_reg_shm some;
""",
    "kernel/virtualization.c": """
struct guest_partition { void *next; unsigned short id; };
struct guest_partition *current_partition[4];
void virt_unset_guest(void) {}
""",
}


@pytest.fixture
def tee(tmp_path: Path) -> Path:
    """A folder with a ``tee.elf`` and its image."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    elf = tmp_path / "tee.elf"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", "-nostdlib", "-o", elf, *SOURCES], cwd=tmp_path, check=True)
    with elf.open("rb") as stream:
        code = ELFFile(stream).get_section_by_name(".text").data()  # type: ignore[no-untyped-call]
    (tmp_path / "tee-pager_v2.bin").write_bytes(code + b"its data")
    return elf


def test_the_layout_comes_from_the_debug_information(tee: Path) -> None:
    numbers = OpteeLayout.load(tee).numbers
    symbols = {name: numbers.pop(name) for name in ("optee_leave", "optee_current", "optee_list")}
    assert all(symbols.values()) and len(set(symbols.values())) == 3
    assert numbers == {
        "optee_cpus": 4, "optee_partition_id": 8, "optee_shm_size": 8, "optee_shm_next": 32,
        "optee_shm_cookie": 40, "optee_shm_page_offset": 56, "optee_shm_pages": 72,
    }  # fmt: skip
    options = PluginOptions(out=tee, optee=known_optee(tee.parent), senses=frozenset({Sense.PARTITION}))
    assert {"optee=on", "partition=on", "optee_cpus=0x4"} <= set(options.arguments())


def test_a_tee_elf_of_another_image_is_refused(tee: Path) -> None:
    image = tee.with_name("tee-pager_v2.bin")
    image.write_bytes(b"\0" + image.read_bytes())
    with pytest.raises(TraceError, match=r"its code is not that of tee-pager_v2.bin"):
        OpteeLayout.load(tee)
    assert known_optee(tee.parent) is None, "its rule is not checked; the board runs"


def test_an_optee_without_guests_or_debug_information_is_none(tee: Path) -> None:
    assert known_optee(tee.with_name("mm")) is None
    subprocess.run(["strip", "--strip-debug", tee], check=True)
    with pytest.raises(TraceError, match="debug information"):
        OpteeLayout.load(tee)
    subprocess.run(["strip", "--strip-symbol=virt_unset_guest", tee], check=True)
    with pytest.raises(TraceError, match="no symbol virt_unset_guest"):
        OpteeLayout.load(tee)
