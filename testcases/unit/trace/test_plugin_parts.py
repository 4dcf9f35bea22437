# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin's parts that need no board: it compiles, its sink keeps or counts every record, Xen's layout is
found."""

from __future__ import annotations

import ctypes
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from elftools.dwarf.compileunit import CompileUnit

from framework.bench.trace import compile_sink_bench, sink_throughput
from framework.common.errors import BuildError, TraceError, UsageError
from framework.trace.build import SOURCES, PluginOptions, build_plugin, xen_layout
from framework.trace.reader import Reader
from framework.trace.walk import Walked, stage2
from framework.trace.xen_symbols import XenLayout

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="this machine has no C compiler")


class FolderCache:
    """A cache that keeps nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs: list[Mapping[str, object]] = []

    def get(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        self.inputs.append(inputs)
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        build(folder)
        return folder


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_sink_bench(tmp_path_factory.mktemp("sink"))


@needs_compiler
def test_the_plugin_compiles_without_qemus_headers(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    plugin = build_plugin(cache)
    assert plugin.read_bytes()[:4] == b"\x7fELF"
    assert cache.inputs[0]["api"] == 7 and "sink.c" in str(cache.inputs[0]["sources"])


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no C compiler no-such-cc"):
        build_plugin(FolderCache(tmp_path), compiler="no-such-cc")


def test_options_become_arguments_and_commas_are_doubled() -> None:
    options = PluginOptions(out=Path("/a,b/t"), lockstep=Path("/s"), stop_on_loss=False, others=True, timeout_s=1.5)
    option, text = options.qemu(Path("/p.so"))
    assert option == "-plugin" and text.startswith("/p.so,out=/a,,b/t,append=off,lockstep=/s,")
    assert "max_mib=4096" in text
    assert "timeout_ms=1500" in text and "on_loss=continue" in text and "others=record" in text
    with pytest.raises(UsageError, match="a file to write"):
        PluginOptions().arguments()


@needs_compiler
def test_every_record_of_the_sink_arrives_in_order(sink: Path, tmp_path: Path) -> None:
    sink_throughput(sink, tmp_path / "t", records=50_000, size=256)
    seqs = [event.seq for event in Reader(tmp_path / "t").events()]
    assert seqs == list(range(1, 50_001))


@needs_compiler
def test_a_full_disk_is_reported_and_lost_records_are_counted(sink: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [str(sink), str(tmp_path / "t"), "200000", "256"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=True)
    assert "cannot write the trace file: File too large" in done.stderr
    lost = int(done.stdout.split('"lost":')[1].split("}")[0])
    reader = Reader(tmp_path / "t")
    kept = sum(1 for _ in reader.events())
    assert 0 < kept < 200_000 and reader.truncated
    assert 200_000 - lost <= kept <= 200_000 - lost + 1100  # the torn chunk counts as lost, its whole records are read


@needs_compiler
def test_a_file_never_grows_beyond_its_limit(sink: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(sink), str(tmp_path / "t"), "200000", "256", "1"], capture_output=True, text=True, check=True
    )
    assert "the trace file has reached its limit of 1 MiB" in done.stderr
    lost = int(done.stdout.split('"lost":')[1].split("}")[0])
    assert (1 << 20) - 300_000 < (tmp_path / "t").stat().st_size <= 1 << 20
    reader = Reader(tmp_path / "t")
    assert sum(1 for _ in reader.events()) == 200_000 - lost > 0 and not reader.truncated


@needs_compiler
def test_an_unwritable_file_is_refused_at_once(sink: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(sink), str(tmp_path / "no" / "t"), "1", "256"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "No such file or directory" in done.stderr


XEN = """
typedef unsigned short domid_t; typedef struct { unsigned long gfn; } gfn_t;
struct list_head { void *next, *prev; };
struct arch { int pad[7]; void *tee; };
struct domain { domid_t domain_id; long other[3]; struct arch arch; };
struct vcpu { int vcpu_id; long pad; struct domain *domain; };
struct optee_domain { struct list_head call_list, shm_rpc_list; };
struct shm_rpc { struct list_head list; void *page, *xen_arg_pg, *xen_arg; gfn_t gfn; unsigned long cookie; };
struct vcpu *per_cpu__curr_vcpu; struct domain d; struct optee_domain o; struct shm_rpc r;
void arch_domain_create(void) {} void domain_kill(void) {} void arch_domain_destroy(void) {}
"""


@needs_compiler
def test_xens_layout_comes_from_its_debug_information(tmp_path: Path) -> None:
    source = tmp_path / "tee" / "optee.c"
    source.parent.mkdir()
    source.write_text(XEN)
    output = tmp_path / "xen-syms"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", "-o", output, source], check=True)
    layout = XenLayout.load(output)
    offsets = {name: layout.core[name] for name in ("xen_vcpu_domain", "xen_vcpu_id", "xen_domain_id")}
    assert offsets == {"xen_vcpu_domain": 16, "xen_vcpu_id": 0, "xen_domain_id": 0}
    assert layout.core["xen_create"] and layout.core["xen_curr_vcpu"]
    assert layout.tee == {
        "xen_domain_tee": 32 + 32,
        "xen_tee_rpcs": 16,
        "xen_rpc_list": 0,
        "xen_rpc_arg": 32,
        "xen_rpc_gfn": 40,
        "xen_rpc_cookie": 48,
    }
    assert layout.books == {} and layout.without_books == "common/xmalloc_tlsf.c has no debug information"
    assert "xen_rpc_cookie=0x30" in layout.arguments() and "xen_books=off" in layout.arguments()
    assert xen_layout(FolderCache(tmp_path), output) == layout
    subprocess.run(["strip", "--strip-debug", output], check=True)
    with pytest.raises(TraceError, match="debug information"):
        XenLayout.load(output)


DISPATCH = """
struct tee_mediator_desc { const char *name; const void *ops; unsigned short tee_type; };
static const struct tee_mediator_desc *cur_mediator;
const void *active(void) { return &cur_mediator; }
"""
NAMESAKE = "static const void *cur_mediator; const void *other(void) { return &cur_mediator; }"


@needs_compiler
def test_the_active_mediator_is_that_of_tee_c_and_not_its_namesake(tmp_path: Path) -> None:
    sources = {"tee/optee.c": XEN, "firmware/sci.c": NAMESAKE, "tee/tee.c": DISPATCH}
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    output = tmp_path / "xen-syms"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", "-o", output, *(tmp_path / name for name in sources)], check=True)
    layout = XenLayout.load(output)
    listed = subprocess.run(["nm", output], capture_output=True, text=True, check=True).stdout.splitlines()
    namesakes = [int(line.split()[0], 16) for line in listed if line.endswith(" cur_mediator")]
    assert len(set(namesakes)) == 2
    # In the order of the sources.
    assert layout.tee["xen_mediator"] == max(namesakes)
    assert layout.tee["xen_tee_type"] == 16


@needs_compiler
def test_of_a_xen_only_the_units_that_matter_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"tee/optee.c": XEN, "tee/tee.c": DISPATCH, "arm/vsmc.c": "int v;", "common/domain.c": "int c;"}
    wanted["common/xmalloc_tlsf.c"] = "int x;"
    # As in Xen the names that matter do not stand at the beginning of all strings: small numbers are everywhere.
    others = [f"common/{'x' * 200}{number}.c" for number in range(5)]
    sources = {**dict.fromkeys(others, "static int other;"), **wanted}
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    output = tmp_path / "xen-syms"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", "-o", output, *sources], cwd=tmp_path, check=True)
    read: set[int] = set()
    top = CompileUnit.get_top_DIE

    def reading(unit: CompileUnit) -> object:
        read.add(unit.cu_offset)
        return top(unit)

    monkeypatch.setattr(CompileUnit, "get_top_DIE", reading)
    assert XenLayout.parse(output).tee["xen_mediator"]
    assert len(read) == len(wanted)


LEARNING = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "trace.h"
/* Xen's memory: where cur_mediator is, its description, a vCPU, a domain, and its list with one buffer. */
static uint64_t memory[64];
static unsigned found;
__thread bool inside = true;
bool xen_read(unsigned cpu, uint64_t va, void *data, size_t length)
{
    (void)cpu;
    memcpy(data, (char *)memory + va, length);
    return true;
}
bool xen_va(unsigned cpu, uint64_t va, uint64_t *ma) { (void)cpu; *ma = va; return true; }
bool ma_read(uint64_t ma, void *data, size_t length) { return xen_read(0, ma, data, length); }
uint64_t reg_read(unsigned cpu, enum reg reg) { (void)cpu; (void)reg; return 0; }
void tee_rpc_add(uint16_t owner, uint64_t cookie, uint64_t shadow, uint64_t ipa)
{
    (void)owner; (void)cookie; (void)shadow; (void)ipa;
    found++;
}
int main(int count, char **words)
{
    (void)count;
    xen.known = xen.tee_known = true;
    xen.mediator = strtoull(words[1], NULL, 0);
    xen.tee_type = 8;
    memory[1] = 16;                         /* cur_mediator -> the description at 16 */
    memory[3] = strtoull(words[2], NULL, 0); /* its tee_type */
    memory[4] = 48;                         /* vcpu at 32 -> domain at 48 */
    memory[6] = 64;                         /* domain -> its state in the mediator at 64 */
    memory[8] = 80;                         /* the head of the list -> a node at 80 */
    memory[10] = 64;                        /* and back */
    xen.rpc_arg = 8; xen.rpc_gfn = 16; xen.rpc_cookie = 24;
    struct who who = {.vcpu = 32, .domain = 1};
    xen_learn(0, &who);
    printf("%u", found);
    return 0;
}
"""


@needs_compiler
@pytest.mark.parametrize(
    ("symbol", "kind", "buffers"),
    [("8", "1", "1"), ("8", "2", "0"), ("0", "2", "1")],
    ids=["OP-TEE is active", "FF-A is active", "not known"],
)
def test_a_domain_of_another_mediator_is_not_taken_for_optees(
    learning: Path, symbol: str, kind: str, buffers: str
) -> None:
    done = subprocess.run([learning, symbol, kind], capture_output=True, text=True, check=True)
    assert done.stdout == buffers


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's part that reads Xen's lists, over a memory of the test's own."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "main.c").write_text(LEARNING)
    command = ["cc", "-std=gnu11", f"-I{SOURCES}", "-o", folder / "learning", folder / "main.c", SOURCES / "xen.c"]
    subprocess.run(command, check=True)
    return folder / "learning"


def test_a_file_that_is_not_xen_syms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xen").write_bytes(b"MZ" + bytes(64))
    with pytest.raises(TraceError, match="cannot read Xen's symbols"):
        XenLayout.load(tmp_path / "xen")


class Tables:
    """Memory with page tables, by 64-bit word."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def __call__(self, address: int) -> int:
        return self.words.get(address, 0)


def test_the_walk_finds_pages_blocks_and_holes() -> None:
    tables = Tables()
    vtcr, vttbr = 25 | 1 << 6, 0x4000_0000 | 3 << 48  # 39 bits, from level 1
    tables.words = {
        0x4000_0000 + 8 * 1: 0x8000_0000 | 0x7FD,  # 1 GiB block
        0x4000_0000 + 8 * 2: 0x4000_1000 | 3,
        0x4000_1000 + 8 * 0: 0x4000_2000 | 3,
        0x4000_1000 + 8 * 1: 0x9000_0000 | 0x7FD,  # 2 MiB block
        0x4000_2000 + 8 * 5: 0xA000_5000 | 0x7FF | 1 << 55,
        0x4000_2000 + 8 * 6: 0xA000_6000 | 0x7FD,  # level 3 without the page bit: not a mapping
    }
    assert stage2(tables, vttbr, vtcr, 0x4012_3456) == Walked(0x8012_3456, 0x8000_07FD, 1)
    assert stage2(tables, vttbr, vtcr, 0x8020_1234).ma == 0x9000_1234
    assert stage2(tables, vttbr, vtcr, 0x8000_5678).ma == 0xA000_5678
    assert stage2(tables, vttbr, vtcr, 0x8000_6000) == Walked(None, 0xA000_67FD, 3)
    assert stage2(tables, vttbr, vtcr, 0xC000_0000) == Walked(None, 0, 1)
    assert stage2(tables, vttbr, vtcr, 1 << 39).ma is None


def test_concatenated_first_tables_take_more_index_bits() -> None:
    tables = Tables()
    tables.words = {0x4000_0000 + 8 * 513: 0x4000_0000 | 0x7FD}  # 40 bits from level 1: two tables of 512
    assert stage2(tables, 0x4000_0000, 24 | 1 << 6, 513 << 30).ma == 0x4000_0000


def test_another_granule_is_refused() -> None:
    with pytest.raises(ValueError, match="granule"):
        stage2(Tables(), 0, 25 | 1 << 6 | 1 << 14, 0)


WAITING = {
    "check_and_stop_scrub": "ldr x1, [x0, #24]; and w1, w1, #0x300000; cmp w1, #0x200, lsl #12; b.eq 1b",
    "a lock with WFE": "ldaxr w1, [x0]; wfe; cmp w1, w2; b.ne 1b",
    "a bit": "ldrb w1, [x0]; yield; tbnz w1, #3, 1b",
    "until it is not 0": "ldar x1, [x0]; cbz x1, 1b",
}
WORKING = {
    "memchr": "ldrb w1, [x0], #1; cmp w1, w2; b.ne 1b",
    "a copy": "ldr x1, [x0]; str x1, [x2]; cbnz x1, 1b",
    "a list": "ldr x0, [x0]; cbnz x0, 1b",
    "a list in two steps": "ldr x1, [x0, #8]; mov x0, x1; cbnz x1, 1b",
    "a count": "ldr x1, [x0]; subs x3, x3, #1; b.ne 1b",
    "shifts": "lsr w1, w1, #1; cbnz w1, 1b",
    "no loop": "ldr x1, [x0]; cbnz x1, 2f",
}


@pytest.fixture(scope="module")
def is_waiting_loop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bool]:
    library = tmp_path_factory.mktemp("waiting") / "waiting.so"
    source = SOURCES / "waiting.c"
    subprocess.run(["cc", "-std=gnu11", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).is_waiting_loop
    function.restype = ctypes.c_bool
    function.argtypes = ctypes.c_char_p, ctypes.c_size_t
    return lambda code: bool(function(code, len(code) // 4))


@needs_compiler
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-as") is None, reason="this machine has no assembler for AArch64")
def test_a_loop_that_waits_is_told_from_one_that_works(
    is_waiting_loop: Callable[[bytes], bool], tmp_path: Path
) -> None:
    found = {}
    for name, loop in (WAITING | WORKING).items():
        compiled, code = tmp_path / "loop.o", tmp_path / "loop.bin"
        text = f"1: {loop}\n2: nop\n"
        subprocess.run(["aarch64-linux-gnu-as", "-o", compiled, "-"], input=text, text=True, check=True)
        subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", compiled, code], check=True)
        found[name] = is_waiting_loop(code.read_bytes()[:-4])
    assert found == {name: name in WAITING for name in found}
