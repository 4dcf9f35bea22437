/*
 * Where things lie in guest RAM (IPA = VA). framework/guests/probe_wire.py has the same numbers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#define PROTOCOL 2

#define VCPUS_MAX 8
#define STACK_SIZE 16384

#define MAILBOX 0x40100000
#define PROGRAM 0x40100020 /* vCPU 0's program, right behind the mailbox: one write fills both */
#define PROGRAM_SIZE 0x7ffe0
#define RESULTS 0x40180000
#define RESULTS_SIZE 0x80000
#define OTHERS 0x40200000 /* per further vCPU: 64 KiB of program, 64 KiB of results */
#define OTHERS_HALF 0x10000
#define POOL 0x40300000 /* pages for RPC answers that the probe gives by itself */
#define POOL_PAGES 256
#define HEAP 0x40400000 /* from here to the end of RAM: the client's */

#define SHARED_INFO 0x38fff000 /* unused end of the grant table's region */

#endif
