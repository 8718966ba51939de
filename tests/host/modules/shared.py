"""Global state of the host: options, the loaded model, interrupts."""

from types import SimpleNamespace

opts = SimpleNamespace(hide_samplers=[], sigma_min=0, sigma_max=0, always_discard_next_to_last_sigma=False)
state = SimpleNamespace(
    time_start=None, interrupted=False, skipped=False, stopping_generation=False, job="", current_latent=None,
    sampling_step=0, sampling_steps=0,
)  # fmt: skip
cmd_opts = SimpleNamespace(api=True, api_auth=None)
sd_model = None
