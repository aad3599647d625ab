"""Regular expressions that are compiled when they are first used: a process of the command line uses few of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

__all__ = ["pattern"]

if TYPE_CHECKING:

    def pattern(text: str, flags: int = 0) -> re.Pattern[str]:
        """`re.compile`, later. What is wrong with the text is said at the first use."""
else:

    class pattern:  # noqa: N801 - it is called as `re.compile` is
        """`re.compile`, later. What is wrong with the text is said at the first use."""

        _METHODS = ("fullmatch", "match", "search", "findall", "finditer", "split", "sub", "subn")
        __slots__ = ("flags_given", "text", *_METHODS)

        def __init__(self, text: str, flags: int = 0) -> None:
            self.text = text
            self.flags_given = flags

        def __getattr__(self, name: str) -> Any:
            compiled = re.compile(self.text, self.flags_given)
            for method in self._METHODS:  # by two threads at once: to no harm
                setattr(self, method, getattr(compiled, method))
            return getattr(compiled, name)
