"""Global state of the host: options, the loaded model, interrupts."""

from types import SimpleNamespace


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, section=None, refresh=None, category_id=None
    ):
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section, self.refresh, self.category_id, self.comment_after = section, refresh, category_id, ""

    def info(self, text):
        self.comment_after += text
        return self

    def needs_reload_ui(self):
        return self


class Options:
    """Values as they were saved; a label that is added later does not write its default among them."""

    def __init__(self, **data):
        self.__dict__["data"], self.__dict__["data_labels"] = data, {}

    def __getattr__(self, name):
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def __setattr__(self, name, value):
        self.data[name] = value

    def add_option(self, name, info):
        self.data_labels[name] = info


opts = Options(
    hide_samplers=[], sigma_min=0, sigma_max=0, always_discard_next_to_last_sigma=False,
    use_downcasted_alpha_bar=False, img2img_fix_steps=False, sd_noise_schedule="Default",
)  # fmt: skip
state = SimpleNamespace(
    time_start=None, interrupted=False, skipped=False, stopping_generation=False, job="", current_latent=None,
    sampling_step=0, sampling_steps=0,
)  # fmt: skip
cmd_opts = SimpleNamespace(api=True, api_auth=None, ui_config_file="ui-config.json")
sd_model = None
