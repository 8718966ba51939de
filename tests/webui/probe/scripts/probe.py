"""Makes a UNet call fail, puts another UNet in its place, tells what it carries, all on request. For tests only.

A request's override setting cannot reach a callback safely, so it is asked for in the prompt: "FAIL AT n" raises at
UNet call n, in the last block, while hooks of the decoder are on.
"""

import re

from modules import script_callbacks, sd_samplers_cfg_denoiser, sd_unet, shared


class Outside(sd_unet.SdUnetOption):
    """What an extension such as TensorRT's offers: another UNet, whose blocks nobody can hook."""

    label = "[probe] outside"

    def create_unet(self):
        unet = sd_unet.SdUnet()
        unet.forward = lambda x, *_, **__: 0.5 * x
        return unet


def on_cfg_denoiser(params):
    found = re.search(r"FAIL AT (\d+)", params.denoiser.p.prompt if isinstance(params.denoiser.p.prompt, str) else "")
    if found and params.denoiser.step == int(found.group(1)):
        block = shared.sd_model.model.diffusion_model.out[-1]

        def fail(*_):
            handle.remove()
            raise RuntimeError("failed on request")

        handle = block.register_forward_hook(fail)


scales = []
combine = sd_samplers_cfg_denoiser.CFGDenoiser.combine_denoised


def combine_and_tell(self, x_out, conds_list, uncond, cond_scale):
    scales.append(float(cond_scale))
    return combine(self, x_out, conds_list, uncond, cond_scale)


def on_app_started(demo, app):
    def state():
        unet = shared.sd_model.model.diffusion_model
        return {
            "hooks": sum(len(block._forward_pre_hooks) for block in unet.output_blocks),
            "forward": "forward" in vars(unet),
        }

    def pretend_sd3(on: bool):
        shared.sd_model.is_sd3 = on
        return {}

    def guidance():
        """The guidance scale of every call since this was last asked."""
        found, scales[:] = list(scales), []
        return found

    if sd_samplers_cfg_denoiser.CFGDenoiser.combine_denoised.__module__ != combine_and_tell.__module__:
        sd_samplers_cfg_denoiser.CFGDenoiser.combine_denoised = combine_and_tell
    app.add_api_route("/hps-probe/guidance", guidance, methods=["GET"])
    app.add_api_route("/hps-probe/state", state, methods=["GET"])
    app.add_api_route("/hps-probe/pretend-sd3", pretend_sd3, methods=["GET"])


script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_list_unets(lambda unets: unets.append(Outside()))
script_callbacks.on_app_started(on_app_started)
