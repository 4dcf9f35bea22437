/*
 * Loops that only wait for another CPU.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_WAITING_H
#define MEDCHECK_WAITING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_WAITING 16 /* instructions of a loop that is looked at */

/* Whether the block is a loop to its own begin of which each turn is the same until memory changes. */
bool is_waiting_loop(const uint32_t *opcodes, size_t count);

#endif
