# SPDX-License-Identifier: GPL-2.0-or-later
"""The behaviour of a correct mediator, to be read beside Xen's ``arch/arm/tee/optee.c``.

Every module takes its functions in the order of optee.c, under their names there; the table of all of them is in
:mod:`mediator_ref.counterparts`. A function takes what the mediator knows (the domain, registers, guest memory) and
returns what has to follow, see :mod:`mediator_ref.spec.outcome`. Nothing is changed, compared or counted here, and
known defects do not exist here.

What the mediator would read and the observer did not see raises
:class:`~mediator_ref.spec.outcome.NotObserved`.
"""
