"""The two kinds of hosts that the stand-in can be: as A1111 v1.10.1, and with what its forks do otherwise.

The forks' traits are from measurement: a backend that holds UNet and noise table, a placeholder while no model is
loaded, decoder blocks run layer by layer, no callback after denoising, a guidance scale of the second pass' own, no
negative condition at CFG 1, seeds that are read, weights that are moved in inference mode only.
"""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace
from typing import Any, Optional

import torch
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import TimestepBlock, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from torch import nn

from hpsampler.freeu import FreeU
from tests.small_unet import checkpoint_info, family_flags, tiny_checkpoint, tiny_unet

__all__ = ["FACES", "Face", "Forked"]


class Face:
    """As A1111: the stand-in's modules as they are."""

    name = "a1111"
    has_backend = False

    def put_on(self, webui: SimpleNamespace) -> None:
        """Make the host's freshly imported modules behave so."""

    def checkpoint(self, table: torch.Tensor, family: str = "is_sd1", seed: int = 0) -> Any:
        return tiny_checkpoint(table, family, seed)

    def nothing(self) -> Any:
        """What is in the model's place while none is loaded."""
        return None

    def unet(self, model: Any) -> nn.Module:
        return model.model.diffusion_model

    def set_table(self, model: Any, table: torch.Tensor) -> None:
        model.alphas_cumprod = table

    def freeu_on(self, model: Any) -> bool:
        """Whether the next call of this model's UNet would have our Free-U."""
        return FreeU.attached(self.unet(model))

    def begin_batch(self, model: Any) -> None:
        """What the host does with the model before each batch and before a second pass."""

    def conditions(self, cond: torch.Tensor, cfg_scale: float) -> Optional[torch.Tensor]:
        """The negative prompt's, for a pass at that guidance scale."""
        return torch.zeros_like(cond)


class Layered(UNetModel):
    """A UNet that calls no block of its own, only the layers in it, and patches before each decoder block."""

    def forward(self, x, timesteps=None, context=None, transformer_options=None):
        options = transformer_options or {}
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels, repeat_only=False))
        skips = []
        for block in self.input_blocks:
            x = _run(block, x, emb, context)
            skips.append(x)
        x = _run(self.middle_block, x, emb, context)
        for block in self.output_blocks:
            skip = skips.pop()
            for patch in options.get("patches", {}).get("output_block_patch", ()):
                x, skip = patch(x, skip, options)
            x = _run(block, torch.cat([x, skip], 1), emb, context)
        return self.out(x)


def _run(block, x, emb, context):
    if not isinstance(block, nn.Sequential):
        return block(x, emb, context)
    for layer in block:
        if isinstance(layer, TimestepBlock):
            x = layer(x, emb)
        else:
            x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
    return x


class Predictor:
    def __init__(self, alphas_cumprod: torch.Tensor, prediction_type: str = "epsilon") -> None:
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.prediction_type = prediction_type


class Patcher:
    """What the backend calls a UNet: the network, and options that each of its clones has for itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.model_options = model, {"transformer_options": {}}

    def clone(self) -> Patcher:
        made = Patcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def set_model_output_block_patch(self, patch: Any) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches.setdefault("output_block_patch", []).append(patch)

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.model_options.setdefault("sampler_post_cfg_function", []).append(function)


class Objects:
    def __init__(self, unet: Patcher) -> None:
        self.unet = unet

    def shallow_copy(self) -> Objects:
        return Objects(self.unet)


class StableDiffusion:
    """A loaded model: no ``alphas_cumprod``, no ``model``, no ``ema_scope``."""

    def __init__(self, network: nn.Module, predictor: Predictor, flags: dict[str, bool], info: Any) -> None:
        core = SimpleNamespace(diffusion_model=network, predictor=predictor, on_device=False)
        self.forge_objects = Objects(Patcher(core))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.model_config = SimpleNamespace()
        self.sd_checkpoint_info = info
        vars(self).update(flags)


class FakeInitialModel:
    """In the model's place until the first picture."""

    cond_stage_model, chunk_length = None, 75


class Forked(Face):
    name = "forked"
    has_backend = True

    def put_on(self, webui: SimpleNamespace) -> None:
        self.webui = webui
        modules = {
            name: importlib.import_module(f"modules.{name}")
            for name in ("sd_models", "sd_samplers_kdiffusion", "processing", "extra_networks", "sd_samplers_common")
        }
        del modules["sd_models"].apply_alpha_schedule_override
        for name in ("use_downcasted_alpha_bar", "sd_noise_schedule"):
            del webui.shared.opts.data[name]
        del webui.shared.cmd_opts.api_auth
        self.to_load: Any = None
        modules["sd_models"].forge_model_reload = self._reload
        kdiffusion = modules["sd_samplers_kdiffusion"]
        kdiffusion.ModelWrap, kdiffusion.CFGDenoiser = self._linker(), self._denoiser(kdiffusion)
        kdiffusion.sampling_prepare = self._prepare
        self._in_processing(modules["processing"])
        modules["extra_networks"].activate = self._activate

    # ---- the model ----

    def checkpoint(self, table: torch.Tensor, family: str = "is_sd1", seed: int = 0) -> Any:
        network, flags = tiny_unet(seed), family_flags(family)
        network.__class__ = Layered
        predictor = Predictor(table, "const" if flags["is_sd3"] else "epsilon")
        return StableDiffusion(network, predictor, flags, checkpoint_info(seed))

    def nothing(self) -> Any:
        return FakeInitialModel()

    def unet(self, model: Any) -> nn.Module:
        return model.forge_objects.unet.model.diffusion_model

    def set_table(self, model: Any, table: torch.Tensor) -> None:
        model.forge_objects.unet.model.predictor = Predictor(table)

    def freeu_on(self, model: Any) -> bool:
        patches = model.forge_objects.unet.model_options["transformer_options"].get("patches", {})
        return any(each.__module__ == "hpsampler.freeu" for each in patches.get("output_block_patch", ()))

    def _reload(self) -> tuple[Any, bool]:
        loading = self.to_load is not None
        if loading:
            self.webui.shared.sd_model, self.to_load = self.to_load, None
        return self.webui.shared.sd_model, loading

    def begin_batch(self, model: Any) -> None:
        model.forge_objects = model.forge_objects_original.shallow_copy()
        model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()

    def conditions(self, cond: torch.Tensor, cfg_scale: float) -> Optional[torch.Tensor]:
        return None if cfg_scale == 1 else torch.zeros_like(cond)

    # ---- sampling ----

    def _prepare(self, patcher: Patcher, x: torch.Tensor) -> None:
        """Move the weights to the device."""
        if not patcher.model.on_device and not torch.is_inference_mode_enabled():
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
        patcher.model.on_device = x.ndim == 4

    def move_away(self) -> None:
        """As when a VAE or another model needed the device meanwhile."""
        self.webui.shared.sd_model.forge_objects.unet.model.on_device = False

    def _linker(self) -> Any:
        webui = self.webui

        class ForgeScheduleLinker(nn.Module):
            def __init__(self, sd_model):
                super().__init__()
                self.inner_model = sd_model
                self.sigmas = sd_model.forge_objects.unet.model.predictor.sigmas

            def forward(self, x, sigma, cond, options=None):
                core = webui.shared.sd_model.forge_objects.unet.model
                assert core.on_device, "Expected all tensors to be on the same device"
                t = torch.bucketize(sigma.log(), self.sigmas.log()).clamp(max=len(self.sigmas) - 1).float()
                scale = sigma.view(-1, 1, 1, 1)
                x_in = x / (scale**2 + 1) ** 0.5
                eps = core.diffusion_model(x_in, t, context=cond, transformer_options=options)
                return x - eps * scale

        return ForgeScheduleLinker

    def _denoiser(self, kdiffusion: Any) -> Any:
        shared, callbacks = self.webui.shared, self.webui.script_callbacks

        class CFGDenoiser(kdiffusion.CFGDenoiser):
            @property
            def inner_model(self):
                if self.model_wrap is None:
                    self.model_wrap = kdiffusion.ModelWrap(shared.sd_model)
                return self.model_wrap

            def forward(self, x, sigma, uncond, cond, cond_scale):
                self.check_interrupt_and_refiner()
                if getattr(self.p, "refiner", None) is shared.sd_model:
                    shared.sd_model.forge_objects.unet.model.on_device = True
                params = callbacks.CFGDenoiserParams(x, sigma, self)
                callbacks.cfg_denoiser_callback(params)
                if self.p.is_hr_pass:
                    cond_scale = self.p.hr_cfg
                assert self.p.seeds[0] is not None
                options = self.inner_model.inner_model.forge_objects.unet.model_options["transformer_options"]
                if cond_scale == 1:
                    uncond = None
                if uncond is None:
                    first = denoised = self.inner_model(x, sigma, cond, options)
                else:
                    both = [torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([cond, uncond])]
                    first, second = self.inner_model(*both, options).chunk(2)
                    denoised = second + cond_scale * (first - second)
                args = {"cond_denoised": first, "input": x, "sigma": sigma, "cond": cond}
                patcher = self.inner_model.inner_model.forge_objects.unet
                for function in patcher.model_options.get("sampler_post_cfg_function", ()):
                    denoised = function({**args, "denoised": denoised})
                self.sampler.last_latent = denoised
                after = callbacks.AfterCFGCallbackParams(denoised)
                callbacks.cfg_after_cfg_callback(after)
                self.step += 1
                return after.x

        return CFGDenoiser

    # ---- requests ----

    def _in_processing(self, processing: Any) -> None:
        """Only txt2img's class has what a second pass needs, which is read for every request."""
        made = processing.StableDiffusionProcessing.setup_conds

        def setup_conds(p):
            assert isinstance(p.hr_distilled_cfg, float)
            made(p)

        processing.StableDiffusionProcessing.setup_conds = setup_conds
        processing.StableDiffusionProcessing.seeds = None
        processing.StableDiffusionProcessingTxt2Img.hr_distilled_cfg = 3.5

    def _activate(self, p: Any, extra_network_data: Any) -> None:
        networks = importlib.import_module("modules.extra_networks")
        assert p.scripts is None
        networks.activated.append(dict(extra_network_data))
        model = self.webui.shared.sd_model
        model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


FACES = {face.name: face for face in (Face, Forked)}
