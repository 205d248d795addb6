from __future__ import annotations

import pytest

from workers.sealed import canonical_json, seal, unseal

REFUSALS = r"is not JSON|has no seal|does not match its seal"
CONTENT = {"b": [1, 2.5, None], "a": {"x": "\u00fc", "y": True}, "seconds": 0.1}


def test_what_is_sealed_is_read_back():
    sealed = seal(CONTENT)
    assert unseal(canonical_json(sealed)) == sealed
    assert {key: value for key, value in sealed.items() if key != "sha256"} == CONTENT
    assert seal(sealed) == sealed
    assert seal({**sealed, "seconds": 0.2}) != sealed


def test_every_changed_byte_is_noticed():
    raw = canonical_json(seal(CONTENT))
    for place in range(len(raw)):
        for mask in (0x01, 0x02, 0x20, 0x80, 0xFF):
            with pytest.raises(ValueError, match=REFUSALS):
                unseal(raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :])


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"null", b"\xff", canonical_json(CONTENT), canonical_json(seal({}))[:-1]]
)
def test_other_bytes_are_not_sealed(raw):
    with pytest.raises(ValueError, match=REFUSALS):
        unseal(raw)


def test_another_spelling_is_not_the_same():
    raw = canonical_json(seal(CONTENT))
    with pytest.raises(ValueError, match="does not match"):
        unseal(raw.replace(b"0.1", b"1e-1"))
