"""Makes a UNet call fail, puts another UNet in its place, tells what it carries, all on request. For tests only.

A request's override setting cannot reach a callback safely, so it is asked for in the prompt: "FAIL AT n" raises at
UNet call n, in the last block, while Free-U is on.
"""

import inspect
import re

from modules import script_callbacks, sd_samplers_cfg_denoiser, sd_unet, shared


class Outside(sd_unet.SdUnetOption):
    """What an extension such as TensorRT's offers: another UNet, whose blocks nobody can hook."""

    label = "[probe] outside"

    def create_unet(self):
        unet = sd_unet.SdUnet()
        unet.forward = lambda x, *_, **__: 0.5 * x
        return unet


def patcher():
    """The UNet with its patches, where a backend runs it; otherwise None."""
    objects = getattr(shared.sd_model, "forge_objects", None)
    return objects and objects.unet


def diffusion_model():
    return (patcher() or shared.sd_model).model.diffusion_model


def on_cfg_denoiser(params):
    found = re.search(r"FAIL AT (\d+)", params.denoiser.p.prompt if isinstance(params.denoiser.p.prompt, str) else "")
    if found and params.denoiser.step == int(found.group(1)):
        block = diffusion_model().out[-1]

        def fail(*_):
            handle.remove()
            raise RuntimeError("failed on request")

        handle = block.register_forward_hook(fail)


scales = []


def telling(function):
    """The function, which tells the guidance scale it is called with."""
    arguments = inspect.signature(function)

    def tell(*args, **kwargs):
        scales.append(float(arguments.bind(*args, **kwargs).arguments["cond_scale"]))
        return function(*args, **kwargs)

    tell.hps_tells_of = function
    return tell


def measure():
    """Tell every scale, at the one place in the host where both halves of a call are put together."""
    if hasattr(sd_samplers_cfg_denoiser, "sampling_function"):
        place, name = sd_samplers_cfg_denoiser, "sampling_function"
    else:
        place, name = sd_samplers_cfg_denoiser.CFGDenoiser, "combine_denoised"
    function = getattr(place, name)
    # after Reload UI it is still wrapped, by what told the last load of this file
    setattr(place, name, telling(getattr(function, "hps_tells_of", function)))


def on_app_started(demo, app):
    def state():
        """How many hooks and patches are on the UNet's output blocks."""
        hooks = sum(len(block._forward_pre_hooks) for block in diffusion_model().output_blocks)
        options = patcher().model_options if patcher() else {}
        patches = options.get("transformer_options", {}).get("patches", {}).get("output_block_patch", [])
        return {"hooks": hooks + len(patches), "forward": "forward" in vars(diffusion_model())}

    def pretend_flow(on: bool):
        """Let the model say that it is a flow model, in the way such a model says it on this host."""
        predictor = getattr(getattr(patcher(), "model", None), "predictor", None)
        if predictor is None:
            shared.sd_model.is_sd3 = on
        elif on:
            predictor.hps_kept, predictor.prediction_type = predictor.prediction_type, "const"
        else:
            predictor.prediction_type = predictor.hps_kept
        return {}

    def guidance():
        """The guidance scale of every call since this was last asked."""
        found, scales[:] = list(scales), []
        return found

    measure()
    app.add_api_route("/hps-probe/guidance", guidance, methods=["GET"])
    app.add_api_route("/hps-probe/state", state, methods=["GET"])
    app.add_api_route("/hps-probe/pretend-flow", pretend_flow, methods=["GET"])


script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_list_unets(lambda unets: unets.append(Outside()))
script_callbacks.on_app_started(on_app_started)
