"""One sampling pass in the host, whose scheduler, sampler and callbacks know nothing of each other.

txt2img and img2img have one pass, hires fix a second. Its :class:`~hpsampler.plan.Pass` hangs on the denoiser wrapper
that the host makes anew for each (``p.sampler.model_wrap``), which reaches the scheduler as ``inner_model``, the
sampler as ``model.sampler.model_wrap`` and the callbacks as ``denoiser.sampler.model_wrap``. So nothing outlives the
request, and two requests never meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from ..effects import Use
from ..plan import Pass, Request
from ..recipes import AUTO
from ..settings import OFF, Settings
from ..statistics.files import Opened
from . import checkpoint, options
from .folders import library, statistics_folder

__all__ = ["attach", "find", "foreseen", "planned", "unknown"]

ATTRIBUTE = "hpsampler_pass"


def planned(
    settings: Settings,
    request: Request,
    model_wrap: Any,
    tell: Callable[[str], object],
    record: Callable[[str, str], object],
    opened: Optional[Opened] = None,
) -> Pass:
    """The pass of a request on the loaded model."""
    model = checkpoint.LoadedCheckpoint(model_wrap)
    return Pass(settings, request, model, library(), statistics_folder(), tell, record, options.aim(), opened)


def foreseen(settings: Settings, request: Request, opened: Opened) -> Pass:
    """The same before there is a denoiser, to see what it would refuse. It tells and records nothing."""
    # those that are chosen by the model refuse nothing, and to read them takes time
    named = settings.statistics not in (AUTO, OFF)
    folder = statistics_folder() if named else None
    return Pass(settings, request, checkpoint.LoadedCheckpoint(), library(), folder, aim=options.aim(), opened=opened)


def attach(model_wrap: Any, this: Pass) -> None:
    setattr(model_wrap, ATTRIBUTE, this)


def find(model_wrap: Any) -> Optional[Pass]:
    """The pass of a denoiser wrapper, if one was begun."""
    return getattr(model_wrap, ATTRIBUTE, None)


def unknown(model_wrap: Any) -> Pass:
    """A default one, where another script samples past our hooks."""
    # 7 is the host's default guidance scale; the scheduler of such a caller cannot know the real one
    request = Request(Use.of("", ""), 7.0, from_noise=False)
    found = planned(Settings(), request, model_wrap, tell=print, record=lambda name, label: print(label))
    attach(model_wrap, found)
    return found
