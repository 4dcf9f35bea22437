# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the plugin: what an error about them calls them."""

from __future__ import annotations

import pytest

from framework.pytest_plugin.options import _in_pytests_words


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("--xen-syms goes with --xen", "--mc-xen-syms goes with --mc-xen"),
        ("--xen: /a --xenon --mirror", "--mc-xen: /a --xenon --mirror"),
        ("there is no board called 'x'", "there is no board called 'x'"),
    ],
)
def test_an_error_names_the_plugins_own_options(said: str, expected: str) -> None:
    assert _in_pytests_words(said) == expected
