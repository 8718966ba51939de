"""The loaded model's noise table, under the person's options."""

from . import shared


class SdModelData:
    @property
    def sd_model(self):
        """Unlike ``shared.sd_model`` it does not load one."""
        return shared.sd_model


model_data = SdModelData()


def apply_alpha_schedule_override(sd_model, p=None):
    pass
