"""What the page shows of the settings, computed where the picture's own plan is made (:mod:`hpsampler.plan`).

The page sends what its controls hold; :func:`hpsampler.panel.view.view` answers with the numbers of each pass, what is
wrong, what has no effect, what the recipe says beside each control, and what is on offer. How it looks is the page's
(:mod:`hpsampler.webui.panel_html`). A start of the WebUI needs the types alone, so only they are imported here.
"""

from .state import Control, Known, Offer, Page, PassView, Snapshot, View

__all__ = ["Control", "Known", "Offer", "Page", "PassView", "Snapshot", "View"]
