# SPDX-License-Identifier: GPL-2.0-or-later
"""ABIs of trusted operating systems, one module each, beside the calling convention they share.

``from mediator_ref import abi`` and ``from mediator_ref.abi import …`` give the words of the convention and of OP-TEE,
the ABI of the mediator this reference describes. Another ABI is another module here (``mediator_ref.abi.ffa``), used
under its own name.
"""

from mediator_ref.abi.optee import *  # noqa: F403 - all words of the module
from mediator_ref.abi.smccc import *  # noqa: F403 - all words of the module
