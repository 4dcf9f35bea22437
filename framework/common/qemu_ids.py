# SPDX-License-Identifier: GPL-2.0-or-later
"""The user and group ids of QEMU processes that root starts: nothing else on a machine has them.

They lie between the ids that systemd gives to containers and those that it calls foreign
(https://systemd.io/UIDS-GIDS/), so that no account, service or container owns what a board owns.
"""

from __future__ import annotations

FIRST_UID = 2**31 - 2**23
"""A board's uid and gid are this plus its supervisor's pid (less than 2^22: proc(5), pid_max)."""

LAST_UID = FIRST_UID + 2**22
"""One more than a board's greatest uid."""

READERS = FIRST_UID - 1
"""A group that every such QEMU is in: files with guest RAM or keys in them are readable for it, not for others."""
