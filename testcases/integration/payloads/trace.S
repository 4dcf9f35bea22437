/*
 * A whole board in one page of assembler, for the trace plugin's tests: firmware at EL3 that answers every SMC, a
 * "hypervisor" at EL2 with a stage-2 table that forwards standard calls with a shadow page, and a guest at EL1, first
 * in AArch64, then in AArch32. CPU 0 only; linked at 0x40200000; ends by semihosting.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
        .equ    GUEST_ARG, 0x80000000       /* IPAs behind stage2_l3 */
        .equ    GUEST_LIST, 0x80001000
        .equ    GUEST_READONLY, 0x80002000
        .equ    DOORBELL_BUFFER, 0x80003000
        .equ    CALLS_UID, 0xbf00ff01
        .equ    CALL_WITH_ARG, 0x32000004
        .equ    RETURN_FROM_RPC, 0x32000003
        .equ    PSCI_VERSION, 0x84000000
        .equ    GUEST_DONE, 0xc600ffff      /* not the TEE's: hypervisor service */

        .macro  load reg, value
        movz    \reg, #((\value) & 0xffff)
        movk    \reg, #((\value) >> 16 & 0xffff), lsl #16
        .endm

        .text
        .global _start
_start: /* EL3, secure */
        adr     x0, el3_vectors
        msr     vbar_el3, x0
        mov     x0, #0x531                  /* SCR_EL3: NS, HCE, RW, and the RES1 bits; SMC enabled */
        msr     scr_el3, x0
        mov     x0, #0x3c9                  /* EL2h, interrupts masked */
        msr     spsr_el3, x0
        adr     x0, el2_start
        msr     elr_el3, x0
        eret

el2_start:
        adr     x0, el2_vectors
        msr     vbar_el2, x0
        load    x0, 0x80080001              /* HCR_EL2: RW, TSC, VM */
        msr     hcr_el2, x0
        load    x0, 0x80023559              /* VTCR_EL2: 40-bit output, 4 KiB, start at level 1, 39-bit input */
        msr     vtcr_el2, x0
        adr     x0, stage2_l1
        movk    x0, #7, lsl #48             /* VMID 7 */
        msr     vttbr_el2, x0
        isb
        tlbi    vmalls12e1
        dsb     sy
        mov     x0, #0x3c5                  /* EL1h */
        msr     spsr_el2, x0
        adr     x0, guest
        msr     elr_el2, x0
        eret

guest:  /* EL1, MMU off: addresses are IPAs, identity below 0x80000000 */
        load    x20, ROUNDS
1:      load    x0, CALLS_UID
        mov     x1, #0x11
        mov     x17, #0x17
        smc     #0
        load    x0, CALLS_UID
        hvc     #0
        load    x0, PSCI_VERSION
        smc     #0
        load    x0, PSCI_VERSION
        hvc     #0xea1                      /* a Xen hypercall, whatever x0 holds */
        load    x0, CALL_WITH_ARG
        mov     x1, #0
        load    x2, GUEST_ARG
        mov     x3, #1
        hvc     #0
        load    x0, RETURN_FROM_RPC
        mov     x1, #0
        mov     x2, #0
        mov     x3, #3                      /* the thread that EL3 named */
        hvc     #0
        load    x0, CALL_WITH_ARG
        mov     x1, #0
        load    x2, 0x90000000              /* not mapped */
        smc     #0
        load    x0, DOORBELL_BUFFER
        mov     x1, #0
        hint    #0x30
        load    x9, DOORBELL_BUFFER
        ldr     x2, [x9]                    /* what the consumer wrote */
        load    x0, CALLS_UID
        smc     #0                          /* x1 and x2 tell the test what the doorbell changed */
        subs    x20, x20, #1
        b.ne    1b
        load    x0, GUEST_DONE
        hvc     #0

        .balign 2048
el3_vectors:
        .fill   0x400 / 4, 4, 0xd4200000
        /* An RPC for a standard call, success for its continuation, the UID for anything else. */
        load    x5, CALL_WITH_ARG
        cmp     w0, w5
        b.eq    2f
        load    x5, RETURN_FROM_RPC
        cmp     w0, w5
        b.eq    3f
        load    x0, 0x384fb3e0
        load    x1, 0xe7f811e3
        eret
2:      orr     x5, x2, x1, lsl #32
        mov     w6, #0xf00f
        str     w6, [x5, #20]               /* OP-TEE leaves its mark in the shadow page: ret */
        load    x0, 0xffff0004
        mov     x1, #0
        mov     x2, #0
        mov     x3, #3
        eret
3:      mov     x0, #0
        mov     x3, #0
        eret

        .balign 2048
el2_vectors:
        .fill   0x200 / 4, 4, 0xd4200000
        mov     x12, #1000                  /* +0x200: of EL2 itself, long, and no part of the call */
9:      subs    x12, x12, #1
        b.ne    9b
        eret
        .balign 0x80
        .fill   0x180 / 4, 4, 0xd4200000
        b       el2_trap
        .balign 0x80
        .fill   0x180 / 4, 4, 0xd4200000
        b       el2_trap                    /* +0x600: from AArch32 */
        .balign 0x80

el2_trap:
        mrs     x10, esr_el2
        lsr     x11, x10, #26
        mrs     x13, elr_el2                /* SMC64 0x17 and SMC32 0x13 trap at the instruction, HVC after it */
        cmp     x11, #0x17
        b.eq    1f
        cmp     x11, #0x13
        b.ne    2f
1:      add     x13, x13, #4
        msr     elr_el2, x13
2:      load    x12, GUEST_DONE
        cmp     w0, w12
        b.eq    guest_done
        load    x12, CALL_WITH_ARG
        cmp     w0, w12
        b.eq    3f
        load    x12, RETURN_FROM_RPC
        cmp     w0, w12
        b.eq    4f
        lsr     w12, w0, #24
        cmp     w12, #0xbf
        b.ne    5f
        mov     x7, #2
        smc     #0
        mov     x7, #0
        eret
3:      mrs     x14, spsr_el2
        svc     #0
        msr     spsr_el2, x14
        msr     elr_el2, x13
        load    x12, GUEST_ARG
        cmp     w2, w12
        b.ne    6f
        adr     x12, shadow                 /* copy the first 96 bytes, as a mediator would */
        adr     x14, guest_arg
        mov     x15, #96
7:      sub     x15, x15, #8
        ldr     x16, [x14, x15]
        str     x16, [x12, x15]
        cbnz    x15, 7b
        mov     x1, #0
        mov     x2, x12
        adr     x16, shadow_list            /* its list page instead of the guest's */
        str     x16, [x12, #40]
4:      mov     x7, #2
        smc     #0
        mov     x7, #0
        cbnz    w0, 8f
        adr     x12, shadow                 /* the result goes back */
        adr     x14, guest_arg
        ldr     w16, [x12, #20]
        str     w16, [x14, #20]
8:      eret
6:      mov     x0, #4                      /* EBADADDR, without asking EL3 */
        eret
5:      mov     x0, #-1
        eret

guest_done:
        mrs     x10, hcr_el2
        tbz     x10, #31, finish            /* the AArch32 guest is done too */
        bic     x10, x10, #0x80000000
        msr     hcr_el2, x10
        mov     x0, #0x1d3                  /* AArch32 supervisor mode */
        msr     spsr_el2, x0
        adr     x0, guest32
        msr     elr_el2, x0
        isb
        eret
finish: adr     x1, exit_code
        mov     x0, #0x18                   /* SYS_EXIT */
        hlt     #0xf000
        b       .

        .balign 16
guest32: /* A32: movw/movt r0, then the call */
        .word   0xe30f0f01                  /* movw r0, #0xff01 */
        .word   0xe34b0f00                  /* movt r0, #0xbf00 */
        .word   0xe1600070                  /* smc #0 */
        .word   0xe30f0f01
        .word   0xe34b0f00
        .word   0xe1400070                  /* hvc #0 */
        .word   0xe30f0fff                  /* movw r0, #0xffff */
        .word   0xe34c0600                  /* movt r0, #0xc600 */
        .word   0xe1400070

        .balign 8
exit_code:
        .quad   0x20026, 0                  /* ADP_Stopped_ApplicationExit, 0 */

        .balign 4096, 0 /* zeros, not NOPs: they would be entries */
stage2_l1: /* entry 1: the gigabyte at 0x40000000 as it is, normal memory; entry 2: the guest's pages */
        .quad   0
        .quad   0x40000000 + 0x7fd
        .quad   stage2_l2 + 3
        .balign 4096, 0
stage2_l2:
        .quad   stage2_l3 + 3
        .balign 4096, 0
stage2_l3: /* Xen's p2m type in bits 58:55: 1 read-write RAM, 2 read-only RAM, 3 MMIO */
        .quad   guest_arg + 0x7ff + (1 << 55)
        .quad   guest_list + 0x7ff + (1 << 55)
        .quad   guest_readonly + 0x77f + (2 << 55)
        .quad   doorbell + 0x7ff + (1 << 55)
        .quad   0x09000000 + 0x7c3 + (3 << 55)
        .balign 4096, 0
guest_arg: /* struct optee_msg_arg: INVOKE_COMMAND with one TMEM_INPUT|NONCONTIG and one VALUE_INPUT */
        .word   1, 0x22, 0x33, 0, 0, 0, 0, 2
        .quad   0x209, GUEST_LIST + 0x10, 0x2000, 0xc00c1e
        .quad   1, 0xa, 0xb, 0xc
        .balign 4096, 0
guest_list: /* 0x2010 bytes: three pages; the last is not mapped */
        .quad   GUEST_READONLY, GUEST_ARG, 0x80200000
        .balign 4096, 0
guest_readonly:
        .quad   0x1234
        .balign 4096, 0
doorbell:
        .quad   0x5555
        .balign 4096, 0
shadow: .fill   4096, 1, 0
shadow_list:
        .quad   0xaaaa000, 0xbbbb000
        .balign 4096, 0
