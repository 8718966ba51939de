"""The loaded model's noise table, under the person's options."""


def apply_alpha_schedule_override(sd_model, p=None):
    pass
