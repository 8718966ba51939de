"""What of ours failed while the host started or its page was used: the host goes on, and the person is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

__all__ = ["Trouble"]


class Trouble:
    """What failed since the extension was loaded, a sentence each."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._printed: set[str] = set()

    @property
    def sentences(self) -> Sequence[str]:
        return tuple(self._sentences)

    def report(self, what: str, error: Exception, lasting: bool = True) -> str:
        """Say once in the console that something failed; returns the sentence.

        Args:
            what: begins the sentence, such as "the settings page".
            lasting: whether it is missing from now on, and not only this time.
        """
        told = " ".join(str(error).split())
        sentence = f"{what} failed ({type(error).__name__}{f': {told}' if told else ''}); the rest works without it."
        if lasting and sentence not in self._sentences:
            self._sentences.append(sentence)
        if sentence not in self._printed:
            self._printed.add(sentence)
            print(f"HP Sampler: {sentence}")
        return sentence

    def guarded(self, what: str, act: Callable[..., Any], instead: Any = None) -> Callable[..., Any]:
        """``act``, of which an exception is reported and ``instead`` returned."""

        @wraps(act)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return act(*args, **kwargs)
            except Exception as error:
                self.report(what, error)
                return instead

        return guarded
