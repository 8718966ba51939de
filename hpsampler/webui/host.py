"""The one boundary to what hosts differ in: AUTOMATIC1111's WebUI and the programs that were forked from it.

Each function asks for a thing (is a model loaded, its noise table, Free-U in the next call) and finds it by what the
host has, never by the host's name. What may be missing is read with a default, which is said where it is read. So a
further fork is a further way to find a thing here, and nothing else in ``webui/`` changes.

Two kinds of hosts are known. One keeps the model as Stability AI's code made it (``model.model.diffusion_model``). The
other runs it through a backend of its own, which hangs on the model as ``forge_objects``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Optional

import torch
from modules import devices, extra_networks, processing, sd_models, shared
from torch import nn

from ..freeu import FreeU, FreeUPlan, Waves, output_block_patch
from ..noise import ALPHAS_CUMPROD_FLOOR, NoiseModel

__all__ = [
    "freeu",
    "guidance",
    "is_flow",
    "load",
    "loaded",
    "option",
    "override_schedule",
    "ready_to_call",
    "table",
    "takes_guidance",
    "unet",
]

_PLAIN = "_hpsampler_plain"
"""Of a backend's UNet that has our patch: the one that it is a clone of."""

_OURS = "hpsampler"
"""Marks our patch, should another extension have cloned the UNet that has it."""


def option(name: str, default: Any = None) -> Any:
    """One of the host's options; the default where the host has no such option."""
    return getattr(shared.opts, name, default)


# ---- the model -------------------------------------------------------------------------------------------------------


def loaded() -> Optional[Any]:
    """The loaded model; None while there is none. Loads nothing.

    Some hosts load a model only with the first picture, and until then keep something in its place that is no model.
    """
    model = sd_models.model_data.sd_model
    return model if getattr(model, "sd_checkpoint_info", None) is not None else None


def load() -> Optional[Any]:
    """The model that the person chose, loaded now if it is not yet; None where there is none to load."""
    reload = getattr(sd_models, "forge_model_reload", None)
    if reload is not None:
        reload()
    model = shared.sd_model
    return model if getattr(model, "sd_checkpoint_info", None) is not None else None


def _backend(model: Any) -> Optional[Any]:
    return getattr(model, "forge_objects", None)


def _core(model: Any) -> Any:
    """What holds the UNet and its noise table: the backend's model where there is one."""
    backend = _backend(model)
    return getattr(model if backend is None else backend.unet, "model", None)


def unet(model: Any) -> Optional[nn.Module]:
    """The UNet that the next call goes to, if the model has one; changes with refiner and hires checkpoint."""
    return getattr(_core(model), "diffusion_model", None)


def is_flow(model: Any) -> bool:
    """Whether it is a flow model (SD3, Flux, rectified SDXL), whatever family it says that it is of."""
    core = _core(model)
    kind = getattr(getattr(core, "model_type", None), "name", "")
    predicts = getattr(getattr(core, "predictor", None), "prediction_type", "")
    return bool(getattr(model, "is_sd3", False)) or predicts == "const" or "FLOW" in kind or "FLUX" in kind


def table(model: Any) -> NoiseModel:
    """The noise table that the next request will have; hosts change their model's for each request anew.

    Raises:
        ValueError: it is no table of a diffusion model.
        AttributeError: the model has none.
    """
    alphas = getattr(model, "alphas_cumprod_original", getattr(model, "alphas_cumprod", None))
    if alphas is not None:
        if option("use_downcasted_alpha_bar", False):
            alphas = alphas.half()
    else:
        alphas = 1 / (1 + _core(model).predictor.sigmas.double() ** 2)
    # a checkpoint may say by itself that it wants it
    said = getattr(model, "ztsnr", False) or getattr(getattr(model, "model_config", None), "ztsnr", False)
    if said or option("sd_noise_schedule") == "Zero Terminal SNR":
        alphas = _zero_terminal_snr(alphas)
    return NoiseModel.from_alphas_cumprod(alphas)


def _zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """Rescaled (arXiv 2305.08891, algorithm 1) in the table's own precision, as hosts do."""
    root = alphas.sqrt()
    rescaled = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    rescaled[-1] = ALPHAS_CUMPROD_FLOOR
    return rescaled


def override_schedule(p: Any) -> None:
    """Give the model the noise table that a request's options ask for, where the host does not by itself."""
    apply = getattr(sd_models, "apply_alpha_schedule_override", None)
    if apply is not None:
        apply(p.sd_model, p)


# ---- guidance --------------------------------------------------------------------------------------------------------


def guidance(p: Any, second: bool) -> float:
    """The guidance scale of a request's first or second pass; hires. fix's second may have one of its own."""
    return float((second and getattr(p, "hr_cfg", 0)) or p.cfg_scale)


def takes_guidance(denoiser: Any) -> Any:
    """``denoiser``, in which the argument ``cond_scale`` is the guidance scale of a call.

    In the second pass some hosts take the request's instead.
    """
    p = denoiser.p
    if not (getattr(p, "is_hr_pass", False) and hasattr(p, "hr_cfg")):
        return denoiser

    def guided(x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
        before = p.hr_cfg
        p.hr_cfg = extra_args.get("cond_scale", before)
        try:
            denoised: torch.Tensor = denoiser(x, sigma, **extra_args)
            return denoised
        finally:
            p.hr_cfg = before

    return guided


# ---- Free-U ----------------------------------------------------------------------------------------------------------


def freeu(plan: Optional[FreeUPlan], waves: Optional[Waves] = None) -> str:
    """Let the UNet calls from now on run with Free-U, or with ``None`` without it.

    Args:
        waves: keeps what Free-U's filter needs from one call to the next.

    Returns:
        Why Free-U cannot act, as the end of "Free-U has no effect, as ..."; empty where it can.
    """
    model = loaded()
    backend = _backend(model)
    network = unet(model)
    if network is None:
        return ""
    if backend is not None:
        _unpatch(backend)
    FreeU.detach(network)
    if plan is None:
        return ""
    other = _unet_in_its_place()
    if other:
        return f"the UNet that runs is {other}, which it cannot reach"
    if backend is not None:
        _patch(backend, plan, waves)
    elif _is_compiled(network):
        return "the UNet is compiled, and a compiled one does not see it"
    else:
        FreeU.attach(network, plan, waves)
    return ""


def _patch(backend: Any, plan: FreeUPlan, waves: Optional[Waves]) -> None:
    """By the backend's own patch of output blocks, on a clone that stands in the UNet's place for this call."""
    plain = backend.unet
    patched = plain.clone()
    patch = output_block_patch(plan, int(plain.model.diffusion_model.model_channels), waves)
    setattr(patch, _OURS, True)
    patched.set_model_output_block_patch(patch)
    setattr(patched, _PLAIN, plain)
    backend.unet = patched


def _unpatch(backend: Any) -> None:
    plain = getattr(backend.unet, _PLAIN, None)
    if plain is not None:
        backend.unet = plain
    options = getattr(backend.unet, "model_options", {})
    patches = options.get("transformer_options", {}).get("patches", {})
    if any(hasattr(each, _OURS) for each in patches.get("output_block_patch", ())):
        patches["output_block_patch"] = [each for each in patches["output_block_patch"] if not hasattr(each, _OURS)]


def _unet_in_its_place() -> str:
    """The UNet that another extension runs instead, outside torch (TensorRT, OpenVINO): its name, or nothing."""
    other = getattr(sys.modules.get("modules.sd_unet"), "current_unet", None)
    return "" if other is None else str(getattr(getattr(other, "option", None), "label", "") or type(other).__name__)


def _is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile made it: hooks that are added later are not in what it compiled, or stay in it for ever."""
    return (
        hasattr(network, "_orig_mod")
        or getattr(network, "_compiled_call_impl", None) is not None
        or hasattr(network.forward, "_torchdynamo_orig_callable")
    )


# ---- the denoiser outside a request ----------------------------------------------------------------------------------


@contextmanager
def ready_to_call(x: Optional[torch.Tensor] = None) -> Iterator[None]:
    """As the host surrounds its own sampling; extra networks that the last picture called are put away.

    Args:
        x: latents of the size that the denoiser will be called with, for a host that moves its model to the device for
            every use; None where it is not called.
    """
    model = shared.sd_model
    backend = _backend(model)
    # weights that were made in inference mode can only be moved in it
    mode = torch.no_grad() if backend is None else torch.inference_mode()
    with mode, getattr(model, "ema_scope", nullcontext)():
        if backend is not None:
            model.forge_objects = model.forge_objects_original.shallow_copy()
        with devices.autocast():
            extra_networks.activate(processing.StableDiffusionProcessing(prompt=""), {})
        if backend is not None:
            model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
            if x is not None:
                _to_device(model.forge_objects.unet, x)
        upcast = getattr(devices, "unet_needs_upcast", False)
        with devices.without_autocast() if upcast else devices.autocast():
            yield


def _to_device(patcher: Any, x: torch.Tensor) -> None:
    from modules import sd_samplers_kdiffusion

    prepare = getattr(sd_samplers_kdiffusion, "sampling_prepare", None)
    if prepare is not None:
        prepare(patcher, x=x)
