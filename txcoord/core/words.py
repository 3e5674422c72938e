"""Texts that come from elsewhere."""

from __future__ import annotations


def storable(text: str) -> str:
    """Without what a database refuses in a text: NUL, and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
