"""A request as far as conditions and noise are concerned."""

import zlib
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from modules import shared

opt_C = 4
opt_f = 8


def _condition(prompt):
    return torch.randn((4, 32), generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode())))


@dataclass
class StableDiffusionProcessing:
    prompt: Any = ""
    negative_prompt: Any = ""
    sampler_name: Optional[str] = None
    scheduler: Optional[str] = None
    batch_size: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    s_min_uncond: Optional[float] = None
    scripts: Any = field(default=None, init=False)
    refiner: Any = field(default=None, init=False)
    is_hr_pass: bool = field(default=False, init=False)
    hr_scheduler: Any = field(default=None, init=False)
    extra_generation_params: dict = field(default_factory=dict, init=False)

    @property
    def sd_model(self):
        return shared.sd_model

    def fill_fields_from_opts(self):
        pass

    def setup_prompts(self):
        self.all_prompts, self.all_negative_prompts = self.prompt, self.negative_prompt

    def setup_conds(self):
        assert isinstance(self.cached_c, list) and isinstance(self.cached_uc, list)
        self.c = torch.stack([_condition(prompt) for prompt in self.prompts])
        self.uc = torch.stack([_condition(prompt) for prompt in self.negative_prompts])

    def txt2img_image_conditioning(self, x, width=None, height=None):
        return x.new_zeros(x.shape[0], 5, 1, 1)


@dataclass
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """txt2img's, which has what only a second pass needs."""
