"""What a user can cause and cure, told apart from what is a bug."""

from __future__ import annotations


class BadInput(ValueError):  # noqa: N818 (what it is, not that it is one)
    """Something that the user gave cannot be used; the message names it, the rule and the remedy.

    A command that ends with one prints its message and exits with 2. Any other ValueError, such as
    numpy's about shapes, is a bug of ours, and keeps its traceback.
    """
