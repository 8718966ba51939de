"""The accordion and the host's hooks around a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Optional

from gradio.context import Context
from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from ..fields import SettingsError
from ..presets import built_in
from ..recipes import AUTO
from ..settings import ENABLED, FIELDS
from ..store import StoreError
from . import host, options, page_defaults, registration, request, tab, xyz
from .accordion import TITLE, Accordion, PageContext, build
from .api import add_routes
from .fallback import sentence_alone
from .folders import menus, presets
from .infotext import on_pasted, paste_fields
from .page import PAGE, known
from .refusal import answer_in_words, stop
from .runners import Runners
from .trouble import Trouble

__all__ = ["HPSamplerScript", "install"]

STOP_SECONDS = 30


class HPSamplerScript(scripts.Script):
    """The accordion in txt2img and img2img, and the life of its settings from the request to the last UNet call."""

    trouble = Trouble()
    """Of this load of the extension, with which the host makes the class anew."""

    def title(self) -> str:
        return TITLE

    def __init__(self) -> None:
        super().__init__()
        self.accordion: Optional[Accordion] = None
        """Of the page; the API builds others, which nobody sees."""
        self.menus: dict[str, Any] = {}
        """The page's own menus of samplers and of schedule types, which may be built before the accordion or after."""

        self.begun_with: list[Any] = []
        """The values of the accordion as it was last built, which the API fills up a request with."""

    def show(self, is_img2img: bool) -> Any:
        tab_name = "img2img" if is_img2img else "txt2img"
        listen = self.trouble.guarded("the offer Use HP Auto", self.on_after_component)
        for name in ("sampling", "scheduler"):
            listen(
                self.trouble.guarded("the offer Use HP Auto", partial(self._found, name)), elem_id=f"{tab_name}_{name}"
            )
        return scripts.AlwaysVisible

    def _found(self, name: str, event: Any) -> None:
        self.menus.setdefault(name, event.component)
        self._connect()

    def _connect(self) -> None:
        """Let the accordion's offer set the page's own menus, once both are there."""
        if self.accordion is not None and len(self.menus) == 2 and "connected" not in self.menus:
            self.accordion.connect(self.menus["sampling"], self.menus["scheduler"])
            self.menus["connected"] = True

    def ui(self, is_img2img: bool) -> list[Any]:
        prefix = f"{'img2img' if is_img2img else 'txt2img'}_hpsampler"
        block = Context.block
        before = list(block.children) if block is not None else []
        try:
            accordion = self._build(is_img2img, prefix)
        except Exception as error:
            # an exception here would end the start of some hosts; half of an accordion would be worse than none
            for each in [each for each in (block.children if block is not None else ()) if each not in before]:
                each.unrender()
            return sentence_alone(f"HP Sampler: {self.trouble.report('the accordion', error)}", prefix)
        self.trouble.guarded("pasting pictures", self._paste_into)(accordion)
        return accordion.inputs

    def _build(self, is_img2img: bool, prefix: str) -> Accordion:
        tab_name = "img2img" if is_img2img else "txt2img"
        begin, values = _begin_with()
        saved = page_defaults.saved(_ui_config(), tab_name)
        around = PageContext(
            PAGE[tab_name], known, presets(), menus(), values, begin, tab.TAB_TITLE, saved, self.trouble
        )
        accordion = build(prefix, InputAccordion, around)
        self.accordion = self.accordion or accordion
        self.trouble.guarded("the offer Use HP Auto", self._connect)()
        self.begun_with = [each.value for each in accordion.inputs]
        return accordion

    def _paste_into(self, accordion: Accordion) -> None:
        self.infotext_fields, self.paste_field_names = paste_fields(accordion)

    def _said(self, args: Sequence[Any]) -> Sequence[Any]:
        """What a request says: behind a dict, values that were given, and not those that the API filled up with."""
        filled = args and isinstance(args[0], Mapping) and [*args[1:]] == self.begun_with[1:]
        return args[:1] if filled else args

    def process(self, p: Any, *args: Any) -> None:
        request.prepare(p, self._said(args))

    def before_process(self, p: Any, *args: Any) -> None:
        request.before(p)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        try:
            request.begin(p, p.sampler, getattr(p.sampler, "model_wrap", None), kwargs)
            answer_in_words(p)
        except SettingsError as error:
            stop(p, error)

    def post_sample(self, p: Any, *args: Any) -> None:
        request.finish(p)


def _begin_with() -> tuple[str, Optional[dict[str, Any]]]:
    """The preset that the accordion begins with and its values; None where the settings page names none."""
    name = options.default_preset()
    if not name:
        return AUTO, None
    try:
        return name, presets().find(name).values()
    except StoreError as error:
        print(f"HP Sampler: the settings name a preset to begin with that is not here; {error}")
        return AUTO, None


def _ui_config() -> Path:
    """The file in which the host keeps the page's defaults."""
    return Path(shared.cmd_opts.ui_config_file)


def _thaw() -> None:
    """Before a page is built: nothing that it begins with by our decision is frozen in the host's file."""
    _, values = _begin_with()
    plain = {each.name: each.default for each in FIELDS}
    begin = {ENABLED.name: values is not None, **plain, **(values or {})}
    try:
        found = page_defaults.thaw(_ui_config(), begin, (each.values() for each in (*built_in(), *presets().read()[0])))
    except OSError as error:
        found = [f"the page's defaults cannot be kept apart from what was saved of them; {error}"]
    for problem in found:
        print(f"HP Sampler: {problem.removeprefix('HP Sampler: ')}.")


def on_cfg_denoiser(params: Any) -> None:
    """Before each UNet call: Free-U on the UNet that this call goes to, if the plan says so, else on none."""
    denoiser = params.denoiser
    this = request.pass_or_none(getattr(denoiser.sampler, "model_wrap", None), denoiser.sampler)
    if this is not None:
        this.call()
    plan = this.freeu_plan(denoiser.step, denoiser.total_steps) if this is not None else None
    try:
        obstacle = host.freeu(plan, this.waves if this is not None else None)
    except Exception as error:
        # the infotext may not say that it was on
        obstacle = f"it could not be put on this UNet ({type(error).__name__}: {error})"
    if this is not None and plan is not None and obstacle:
        this.tell(f"Free-U has no effect, as {obstacle}")


def on_cfg_after_cfg(params: Any) -> None:
    """After all UNet calls of a step, others' included: Free-U is on for no longer, so nothing can leave it."""
    host.freeu(None)


def install() -> None:
    """Register all of it; called by the script file on every load of the host's scripts."""
    for problem in options.problems():
        print(f"HP Sampler: {problem}.")
    registration.register(options.hidden())
    # For every callback the host reads the source of its whole call stack, to see whose it is: 30 ms each from where
    # scripts are loaded. A thread's stack is short, and names the same file.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_add_callbacks).result()


def _add_callbacks() -> None:
    guarded = HPSamplerScript.trouble.guarded
    script_callbacks.on_before_ui(guarded("the page's own defaults", _thaw))
    script_callbacks.on_before_ui(guarded("the axes of X/Y/Z plots", xyz.register))
    script_callbacks.on_ui_settings(guarded("the settings page", options.register))
    script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
    script_callbacks.on_cfg_after_cfg(guarded("taking Free-U off", on_cfg_after_cfg))

    script_callbacks.on_infotext_pasted(guarded("pasting pictures", on_pasted))

    runners = Runners()

    def tabs() -> list[tuple[Any, str, str]]:
        return [(tab.build(runners, known, options.default_preset), tab.TAB_TITLE, tab.TAB_ID)]

    script_callbacks.on_ui_tabs(guarded(f"the tab {tab.TAB_TITLE}", tabs, instead=[]))
    script_callbacks.on_app_started(guarded("the API of calibrations", partial(_on_app_started, runners)))

    def leave() -> None:
        # what it has finished is kept, and the next load can resume it
        runners.stop(wait=STOP_SECONDS)
        host.freeu(None)
        registration.unregister()

    script_callbacks.on_script_unloaded(guarded("leaving", leave))


def _on_app_started(runners: Runners, page: Any, app: Any) -> None:
    if shared.cmd_opts.api:
        add_routes(app, runners, getattr(shared.cmd_opts, "api_auth", None))
