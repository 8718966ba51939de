"""How a request is refused so that the person reads why, on the page and over the API, whatever the host.

A hook of the host's that raises is printed to the console, and the picture is drawn all the same. So what is refused
raises at the next thing that the host does unguarded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

from ..fields import SettingsError

__all__ = ["Refusal", "allow", "answer_in_words", "refuse", "stop"]


class Refusal(HTTPException):
    """A refused request of the API.

    The host answers an ``HTTPException`` inside its innermost layer. Any other exception passes its middlewares, which
    wrap it in an ExceptionGroup where anyio is newer than 3, and the message is lost.
    """

    def __init__(self, text: str) -> None:
        super().__init__(500, text)

    def __str__(self) -> str:
        return str(self.detail)


# what programs know it by, as the host answers with the name of an exception's class
Refusal.__name__ = SettingsError.__name__


def refuse(p: Any, error: SettingsError) -> None:
    """Stop a request that was not begun yet: before its conditions are made, on every host the first unguarded step."""
    if not getattr(p, "is_api", False) and _raised_are_lost():
        # no batch is drawn, and what stands under the gallery says why
        p.comment(str(error))
        p.n_iter = 0
        return
    p.setup_conds = _raising(p, error)


def allow(p: Any) -> None:
    """Take an earlier refusal back, as scripts of the host's send one request several times."""
    vars(p).pop("setup_conds", None)


def stop(p: Any, error: SettingsError) -> None:
    """Stop a pass before its first call; ``p.sampler`` lives for this pass only."""
    p.sampler.sample = p.sampler.sample_img2img = _raising(p, error)


def answer_in_words(p: Any) -> None:
    """Let what a pass of the API's finds wrong while it samples be a refusal too."""
    if not getattr(p, "is_api", False):
        return
    for name in ("sample", "sample_img2img"):
        setattr(p.sampler, name, _answering(getattr(p.sampler, name)))


def _answering(sample: Callable[..., Any]) -> Callable[..., Any]:
    def answering(*args: Any, **kwargs: Any) -> Any:
        try:
            return sample(*args, **kwargs)
        except SettingsError as error:
            raise Refusal(str(error)) from None

    return answering


def _raising(p: Any, error: SettingsError) -> Any:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise Refusal(str(error)) if getattr(p, "is_api", False) else error

    return raising


def _raised_are_lost() -> bool:
    """Whether the page draws in a thread of the host's that drops exceptions instead of keeping the last."""
    worker = sys.modules.get("modules_forge.main_thread")
    return worker is not None and not hasattr(worker, "last_exception")
