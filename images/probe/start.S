/*
 * Entry of every vCPU, exception vectors, and the few routines that C cannot express.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "layout.h"

        .section .head, "ax"
        .globl  _start
_start: b       boot                    /* arm64 Image header (Linux Documentation/arch/arm64/booting.rst) */
        .word   0
        .quad   0                       /* text offset: none, RAM starts at a 2 MiB boundary */
        .quad   _image_end - _start
        .quad   0xa                     /* flags: little-endian, 4 KiB pages, anywhere in memory */
        .quad   0, 0, 0
        .ascii  "ARM\x64"
        .word   0

        .text
boot:   adrp    x1, _bss_start
        adrp    x2, _bss_end
1:      stp     xzr, xzr, [x1], #16
        cmp     x1, x2
        b.lo    1b
        mov     x19, #0
        b       enter

/* PSCI CPU_ON comes here with x0 = the vCPU's number. */
        .globl  secondary_entry
secondary_entry:
        mov     x19, x0
enter:  adrp    x0, stacks
        add     x0, x0, :lo12:stacks
        add     x1, x19, #1
        mov     x2, #STACK_SIZE
        madd    x0, x1, x2, x0
        mov     sp, x0
        adrp    x0, vectors
        add     x0, x0, :lo12:vectors
        msr     vbar_el1, x0
        cbnz    x19, 2f
        bl      build_tables
2:      ldr     x0, =0xff04             /* MAIR: 0 = Device-nGnRE, 1 = Normal write-back */
        msr     mair_el1, x0
        ldr     x0, =0x280803519        /* TCR: 39-bit VA, 4 KiB, inner shareable, write-back walks, 40-bit PA */
        msr     tcr_el1, x0
        adrp    x0, table_l1
        add     x0, x0, :lo12:table_l1
        msr     ttbr0_el1, x0
        isb
        tlbi    vmalle1
        dsb     sy
        isb
        mrs     x0, sctlr_el1
        mov     x1, #0x1005             /* I, C, M */
        orr     x0, x0, x1
        bic     x0, x0, #2              /* A: unaligned access to normal memory is allowed */
        bic     x0, x0, #(1 << 19)      /* WXN: generated call stubs are written and executed */
        msr     sctlr_el1, x0
        isb
        mov     x0, x19
        cbnz    x19, 3f
        bl      main
3:      mov     x0, x19
        bl      secondary_main
        b       .

        .macro  vector kind
        .balign 128
        mov     x5, #\kind
        b       caught
        .endm

        .balign 2048
vectors:
        vector  0
        vector  1
        vector  2
        vector  3
        vector  4
        vector  5
        vector  6
        vector  7
        vector  8
        vector  9
        vector  10
        vector  11
        vector  12
        vector  13
        vector  14
        vector  15

/* Nothing is resumed after an exception: on_exception() leaves by restore_context(). Its stack is the vCPU's second one,
 * because the first may be what the program broke. */
caught: mrs     x0, tpidr_el1
        ldr     x1, [x0]
        mov     sp, x1
        mrs     x1, esr_el1
        mrs     x2, elr_el1
        mrs     x3, far_el1
        mrs     x4, spsr_el1
        b       on_exception

/* int save_context(u64 buf[13]): 0 now, and 1 again when restore_context(buf) is called. */
        .globl  save_context
save_context:
        stp     x19, x20, [x0]
        stp     x21, x22, [x0, #16]
        stp     x23, x24, [x0, #32]
        stp     x25, x26, [x0, #48]
        stp     x27, x28, [x0, #64]
        stp     x29, x30, [x0, #80]
        mov     x1, sp
        str     x1, [x0, #96]
        mov     w0, #0
        ret

        .globl  restore_context
restore_context:
        ldp     x19, x20, [x0]
        ldp     x21, x22, [x0, #16]
        ldp     x23, x24, [x0, #32]
        ldp     x25, x26, [x0, #48]
        ldp     x27, x28, [x0, #64]
        ldp     x29, x30, [x0, #80]
        ldr     x1, [x0, #96]
        mov     sp, x1
        mov     w0, #1
        ret

/* void call_out(u64 regs[18], void *stub): x0..x17 in, stub, x0..x17 out. */
        .globl  call_out
call_out:
        stp     x29, x30, [sp, #-112]!
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        stp     x23, x24, [sp, #48]
        stp     x25, x26, [sp, #64]
        stp     x27, x28, [sp, #80]
        str     x0, [sp, #96]
        mov     x18, x0
        mov     x19, x1
        ldp     x0, x1, [x18]
        ldp     x2, x3, [x18, #16]
        ldp     x4, x5, [x18, #32]
        ldp     x6, x7, [x18, #48]
        ldp     x8, x9, [x18, #64]
        ldp     x10, x11, [x18, #80]
        ldp     x12, x13, [x18, #96]
        ldp     x14, x15, [x18, #112]
        ldp     x16, x17, [x18, #128]
        blr     x19
        ldr     x18, [sp, #96]
        stp     x0, x1, [x18]
        stp     x2, x3, [x18, #16]
        stp     x4, x5, [x18, #32]
        stp     x6, x7, [x18, #48]
        stp     x8, x9, [x18, #64]
        stp     x10, x11, [x18, #80]
        stp     x12, x13, [x18, #96]
        stp     x14, x15, [x18, #112]
        stp     x16, x17, [x18, #128]
        ldp     x19, x20, [sp, #16]
        ldp     x21, x22, [sp, #32]
        ldp     x23, x24, [sp, #48]
        ldp     x25, x26, [sp, #64]
        ldp     x27, x28, [sp, #80]
        ldp     x29, x30, [sp], #112
        ret

        .globl  stub_hvc, stub_smc
stub_hvc:
        hvc     #0
        ret
stub_smc:
        smc     #0
        ret

/* s64 hypercall(op, a0..a4): Xen's arm64 convention, HVC #0xEA1 with the number in x16. */
        .globl  hypercall
hypercall:
        mov     x16, x0
        mov     x0, x1
        mov     x1, x2
        mov     x2, x3
        mov     x3, x4
        mov     x4, x5
        hvc     #0xea1
        ret

/* void ring(u64 mailbox, u64 sequence, u64 words, u64 protocol): a NOP, except for a tracing plugin that looks for it. */
        .globl  ring
ring:   hint    #0x30
        ret
