"""The base class of extension scripts."""

AlwaysVisible = object()

scripts_data = []
"""Every script file that was loaded, with its ``path`` and ``module``."""


class Script:
    infotext_fields = None
    paste_field_names = None

    def title(self):
        pass

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def on_after_component(self, callback, *, elem_id):
        self.after_component = {**getattr(self, "after_component", {}), elem_id: callback}

    def before_process(self, p, *args):
        pass

    def process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def post_sample(self, p, ps, *args):
        pass
