# SPDX-License-Identifier: GPL-2.0-or-later
"""Text and numbers of guests: shown, never obeyed, and of any length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.common.errors import GuestCrash, MedcheckError
from framework.common.safe_text import number


@pytest.mark.parametrize(
    ("digits", "value"),
    [
        ("0", 0), ("007", 7), (b"12", 12), ("9" * 18, 10**18 - 1), ("1" + "0" * 18, 10**18 - 1),
        ("9" * 5000, 10**18 - 1), (b"9" * 5000, 10**18 - 1), ("0" * 5000 + "3", 3),
    ],
)  # fmt: skip
def test_numbers_of_any_length(digits: str | bytes, value: int) -> None:
    assert number(digits) == value


@pytest.mark.parametrize("digits", ["", b"", "-1", "+1", "1_0", " 1", "0x1", "\u0663", "\u00b2", b"\xb2", "1.0"])
def test_what_is_no_number(digits: str | bytes) -> None:
    with pytest.raises(ValueError, match="no number"):
        number(digits)


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_an_error_never_holds_an_order_to_a_terminal(what: str, where: str | None, hint: str | None) -> None:
    for kind in (MedcheckError, GuestCrash):
        error = kind(what, where=where, hint=hint)
        assert (error.what, error.where, error.hint) == (what, where, hint)
        # Tabs and newlines stay; nothing else that moves a cursor does.
        assert not [char for char in str(error) if (ord(char) < 32 or 126 < ord(char) < 160) and char not in "\t\n"]
        assert not set(str(error)) & set("\u202e\u2066\u200b\ufeff\u2028")
