"""The list of samplers, and how the host finds one by name."""

import functools

from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


all_samplers = [
    sd_samplers_common.SamplerData(
        "Euler", lambda model: sd_samplers_kdiffusion.KDiffusionSampler(sample_euler, model), ["k_euler"], {}
    ),
]
all_samplers_map = {x.name: x for x in all_samplers}
samplers = []
samplers_map = {}


def set_samplers():
    global samplers
    samplers = all_samplers
    samplers_map.clear()
    for sampler in all_samplers:
        samplers_map[sampler.name.lower()] = sampler.name


def create_sampler(name, model):
    config = all_samplers_map.get(name)
    assert config is not None, f"bad sampler name: {name}"
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


@functools.cache
def get_sampler_and_scheduler(sampler_name, scheduler_name, *, convert_automatic=True):
    found = sd_schedulers.schedulers_map.get(scheduler_name, sd_schedulers.schedulers[0])
    name = sampler_name or samplers[0].name
    for scheduler in sd_schedulers.schedulers:
        for option in (scheduler.label, scheduler.name, *(scheduler.aliases or [])):
            if name.endswith(" " + option):
                found, name = scheduler, name[: -len(option) - 1]
                break
    sampler = all_samplers_map.get(name, samplers[0])
    if convert_automatic and sampler.options.get("scheduler") == found.name:
        found = sd_schedulers.schedulers[0]
    return sampler.name, found.label


set_samplers()
