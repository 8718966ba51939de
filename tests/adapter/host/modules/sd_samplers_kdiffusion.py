"""k-diffusion samplers: the denoiser wrapper, guidance, the schedule, txt2img and img2img runs."""

import inspect

import torch
from modules import script_callbacks, sd_samplers_common, sd_schedulers, shared


class ModelWrap(torch.nn.Module):
    """The loaded model as a k-diffusion denoiser, eps prediction."""

    def __init__(self, sd_model):
        super().__init__()
        alphas_cumprod = sd_model.alphas_cumprod
        self.inner_model = sd_model
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5

    def forward(self, x, sigma, cond):
        log_sigmas = self.sigmas.log()
        t = torch.bucketize(sigma.log(), log_sigmas).clamp(max=len(log_sigmas) - 1).float()
        scale = sigma.view(-1, 1, 1, 1)
        eps = self.inner_model.model.diffusion_model(x / (scale**2 + 1) ** 0.5, t, context=cond)
        return x - eps * scale


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.model_wrap = None
        self.steps = None
        self.total_steps = None
        self.step = 0
        self.p = None

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = ModelWrap(shared.sd_model)
        return self.model_wrap

    def check_interrupt_and_refiner(self):
        if shared.state.interrupted or shared.state.skipped:
            raise sd_samplers_common.InterruptedException
        if self.p.refiner is not None and self.step == self.p.refiner_switch_step:
            shared.sd_model, self.model_wrap = self.p.refiner, None

    def forward(self, x, sigma, uncond, cond, cond_scale):
        self.check_interrupt_and_refiner()
        script_callbacks.cfg_denoiser_callback(script_callbacks.CFGDenoiserParams(x, sigma, self))
        both = self.inner_model(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([cond, uncond]))
        script_callbacks.cfg_denoised_callback(script_callbacks.CFGDenoisedParams(both, self.inner_model))
        denoised_cond, denoised_uncond = both.chunk(2)
        denoised = denoised_uncond + cond_scale * (denoised_cond - denoised_uncond)
        self.sampler.last_latent = denoised
        params = script_callbacks.AfterCFGCallbackParams(denoised)
        script_callbacks.cfg_after_cfg_callback(params)
        self.step += 1
        return params.x


class KDiffusionSampler:
    def __init__(self, funcname, sd_model, options=None):
        self.func = funcname
        self.config = None
        self.last_latent = None
        self.model_wrap_cfg = CFGDenoiser(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps):
        discard = self.config.options.get("discard_next_to_last_sigma", False)
        steps += 1 if discard else 0
        name = (p.hr_scheduler if p.is_hr_pass else p.scheduler) or "Automatic"
        if name == "Automatic":
            name = self.config.options.get("scheduler", "karras")
        scheduler = sd_schedulers.schedulers_map.get(name)
        if scheduler is None or scheduler.function is None:
            # one that it does not know by that spelling: evenly in time, and nothing is said
            times = torch.linspace(len(self.model_wrap.sigmas) - 1, 0, steps).round().long()
            return torch.cat([self.model_wrap.sigmas[times], torch.zeros(1)])
        kwargs = {"sigma_min": self.model_wrap.sigmas[0].item(), "sigma_max": self.model_wrap.sigmas[-1].item()}
        if shared.opts.sigma_min:
            kwargs["sigma_min"] = shared.opts.sigma_min
        if shared.opts.sigma_max:
            kwargs["sigma_max"] = shared.opts.sigma_max
        if scheduler.need_inner_model:
            kwargs["inner_model"] = self.model_wrap
        key = "Hires schedule type" if p.is_hr_pass else "Schedule type"
        p.extra_generation_params[key] = scheduler.label
        sigmas = scheduler.function(n=steps, **kwargs, device=torch.device("cpu"))
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def callback_state(self, d):
        shared.state.sampling_step = d["i"]
        self.seen_steps.append(d["i"])

    def _run(self, p, x, sigmas, steps, cond, uncond):
        if "sampling_prepare" in globals():
            with torch.inference_mode():
                sampling_prepare(shared.sd_model.forge_objects.unet, x=x)  # noqa: F821
        self.model_wrap_cfg.p = p
        self.model_wrap_cfg.step = 0
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        self.seen_steps = []
        assert "sigmas" in inspect.signature(self.func).parameters
        extra_args = self.sampler_extra_args = {"cond": cond, "uncond": uncond, "cond_scale": p.cfg_scale}
        try:
            return self.func(
                self.model_wrap_cfg,
                x,
                sigmas=sigmas,
                extra_args=extra_args,
                disable=False,
                callback=self.callback_state,
            )
        except sd_samplers_common.InterruptedException:
            return self.last_latent

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps = steps or p.steps
        sigmas = self.get_sigmas(p, steps)
        return self._run(p, x * sigmas[0], sigmas, steps, conditioning, unconditional_conditioning)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        sigmas = self.get_sigmas(p, steps)[steps - t_enc - 1 :]
        return self._run(p, x + noise * sigmas[0], sigmas, t_enc + 1, conditioning, unconditional_conditioning)
