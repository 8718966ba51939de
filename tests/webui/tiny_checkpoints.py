"""Write tiny Stable Diffusion checkpoints that a real WebUI loads: nothing can be downloaded where the tests run.

Run from the repository's root with the WebUI's own Python, because the layouts are built from the classes the WebUI
itself uses::

    FOLDER/venv/bin/python -m tests.webui.tiny_checkpoints --webui FOLDER --out DIR

The networks have the layouts of SD 1.5 and SDXL, only narrower. Their weights are random, which alone gives grey or
broken images, so a signal path is laid through them by hand:

* the UNet's answer is its input through a small high-pass filter, plus a random part that reads prompt and timestep.
  Sampling then turns noise into smooth blobs of about unit size, smoothly in the noise level, as a trained UNet does;
* the VAE passes its channels along, smoothed, with some random texture; it decodes what it encoded to about the same.

Everything follows from a seed, so the same versions of torch give the same files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from tiny_model.checkpoint import find_bpe, ldm_config, write_checkpoint, write_tokenizer

SEED = 20240727
TEXT_WIDTH = 64
TEXT_LAYERS = 3
CARRIED = 4
"""Latent channels (in the encoder: red, green, blue and their mean) that the signal path carries, each with its
negative beside it: silu(x) - silu(-x) = x, so the pair passes the last activation unchanged."""

ARCHITECTURE = "hps-tiny-g"
"""SDXL's second text encoder. open_clip knows architectures by name: the server's helper extension adds this one."""

LOW_GAIN = {"eps": 0.62, "v": -0.25}
HIGH_GAIN = {"eps": 1.06, "v": 0.75}
"""Answer to smooth and to finest structures. With answer = gain * input, sampling from noise level s multiplies a
structure by about (2 s)**(1 - gain) / 2 (eps) or exp(-1.5 gain) (v): smooth ones stay, fine ones fade."""

RANDOM_PART = {"sd15": 0.045, "sdxl": 0.015}
"""Standard deviation of the last convolution's weights that read the random features: large enough that prompt and
sampler show, small enough that samplers agree at 20 steps and more."""


def unet_params(sdxl: bool) -> dict:
    """The narrow UNet: 32 channels where the true ones have 320; SDXL's text context is both encoders' side by side."""
    params = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 2,
        "use_spatial_transformer": True,
        "use_checkpoint": False,
        "legacy": False,
    }
    if not sdxl:
        own = {"attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "num_heads": 8}
        return {**params, **own, "transformer_depth": 1, "context_dim": TEXT_WIDTH}
    del params["image_size"]
    return {
        **params,
        "adm_in_channels": TEXT_WIDTH + 6 * 256,
        "num_classes": "sequential",
        "attention_resolutions": [4, 2],
        "channel_mult": [1, 2, 4],
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "transformer_depth": [1, 1, 2],
        "context_dim": 2 * TEXT_WIDTH,
        "spatial_transformer_attn_type": "softmax",
    }


VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


SD15_SCALE_FACTOR = 0.18215


def sdxl_config(tokenizer: Path) -> dict:
    part = "sgm.modules.diffusionmodules"
    embedder = "sgm.modules.encoders.modules"
    sizes = [
        {
            "is_trainable": False,
            "input_key": key,
            "target": f"{embedder}.ConcatTimestepEmbedderND",
            "params": {"outdim": 256},
        }
        for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    ]
    texts = [
        {
            "is_trainable": False,
            "input_key": "txt",
            "target": f"{embedder}.FrozenCLIPEmbedder",
            "params": {"version": str(tokenizer), "layer": "hidden", "layer_idx": TEXT_LAYERS - 1},
        },
        {
            "is_trainable": False,
            "input_key": "txt",
            "target": f"{embedder}.FrozenOpenCLIPEmbedder2",
            "params": {
                "arch": ARCHITECTURE,
                "version": None,
                "freeze": True,
                "layer": "penultimate",
                "always_return_pooled": True,
                "legacy": False,
            },
        },
    ]
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": 0.13025,
            "disable_first_stage_autocast": True,
            "denoiser_config": {
                "target": f"{part}.denoiser.DiscreteDenoiser",
                "params": {
                    "num_idx": 1000,
                    "weighting_config": {"target": f"{part}.denoiser_weighting.EpsWeighting"},
                    "scaling_config": {"target": f"{part}.denoiser_scaling.EpsScaling"},
                    "discretization_config": {"target": f"{part}.discretizer.LegacyDDPMDiscretization"},
                },
            },
            "network_config": {"target": f"{part}.openaimodel.UNetModel", "params": unet_params(sdxl=True)},
            "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": texts + sizes}},
            "first_stage_config": {
                "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
                "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
            },
        },
    }


def import_layouts(webui: Path) -> None:
    """Make ldm and sgm importable as the WebUI does, with stand-ins for the two training-only modules sgm wants."""
    for name, wanted in {"taming.modules.losses.lpips": "LPIPS", "sgm.data": "StableDataModuleFromConfig"}.items():
        stand_in = ModuleType(name)
        setattr(stand_in, wanted, None)
        sys.modules[name] = stand_in
    for repository in ("stable-diffusion-stability-ai", "generative-models"):
        sys.path.insert(0, str(webui / "repositories" / repository))


def build(target: str, params: dict) -> nn.Module:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)(**params)


def wake_zeros(module: nn.Module, gain: float) -> None:
    """Give random weights to the layers that training starts from zero; left so, the network ignores its inside."""
    for weight in module.parameters():
        if weight.dim() > 1 and not weight.any():
            weight.normal_(std=gain / weight[0].numel() ** 0.5)


def smoothing(size: int) -> torch.Tensor:
    """A blur of ``size`` taps, 2 or 3, in a 3x3 kernel."""
    taps = torch.tensor([0.25, 0.5, 0.25] if size == 3 else [0.5, 0.5, 0.0])
    return taps[:, None] * taps[None, :]


def centre() -> torch.Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def carry_in(conv: nn.Conv2d, mix: torch.Tensor) -> None:
    """Rows 0..3 of the output: the input mixed; rows 4..7: its negative."""
    conv.weight[: 2 * CARRIED] = 0
    conv.bias[: 2 * CARRIED] = 0
    conv.weight[:CARRIED, :, 1, 1] = mix
    conv.weight[CARRIED : 2 * CARRIED, :, 1, 1] = -mix


def carry_on(conv: nn.Conv2d, kernel: torch.Tensor, shift: int = 0) -> None:
    """Let the carried channels pass: output i is input ``shift + i``, through the kernel."""
    conv.weight[: 2 * CARRIED] = 0
    conv.bias[: 2 * CARRIED] = 0
    for i in range(2 * CARRIED):
        conv.weight[i, shift + i] = kernel if conv.kernel_size == (3, 3) else 1


def carry_out(conv: nn.Conv2d, mix: torch.Tensor, kernel: torch.Tensor, random_part: float) -> None:
    """Output = the carried channels mixed and filtered + a little of all the others."""
    conv.weight.normal_(std=random_part)
    conv.bias.zero_()
    rows = len(mix)
    conv.weight[:rows, :CARRIED] = mix[:, :, None, None] * kernel
    conv.weight[:rows, CARRIED : 2 * CARRIED] = -mix[:, :, None, None] * kernel


def make_unet(config: dict, layout: str, parameterization: str = "eps") -> nn.Module:
    """Signal path: first convolution, the last skip connection, last residual block, last convolution."""
    unet = build(config["target"], config["params"])
    wake_zeros(unet, gain=1.0)
    carry_in(unet.input_blocks[0][0], torch.eye(CARRIED))
    last = unet.output_blocks[-1]
    # its input is the previous block's output beside the first convolution's
    carry_on(last[0].skip_connection, centre(), shift=last[0].channels - unet.model_channels)
    for ending in [last[0].out_layers[-1]] + [block.proj_out for block in list(last)[1:]]:
        ending.weight[: 2 * CARRIED] = 0
        ending.bias[: 2 * CARRIED] = 0
    low, high = LOW_GAIN[parameterization], HIGH_GAIN[parameterization]
    carry_out(unet.out[-1], torch.eye(4), high * centre() - (high - low) * smoothing(3), RANDOM_PART[layout])
    return unet


def make_vae(scale_factor: float) -> nn.Module:
    """Encoder, decoder and the two 1x1 convolutions between them, under the names that checkpoints use."""
    name = "ldm.modules.diffusionmodules.model"
    vae = nn.Module()
    vae.encoder, vae.decoder = (build(f"{name}.{half}", VAE) for half in ("Encoder", "Decoder"))
    vae.quant_conv, vae.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    for half in (vae.encoder, vae.decoder):
        for part_name, part in half.named_modules():
            if part_name.endswith(("conv2", "proj_out")):  # the ends of the residual branches
                part.weight[: 2 * CARRIED] *= 0.1
                part.bias[: 2 * CARRIED] = 0
            elif part_name.endswith("nin_shortcut"):
                carry_on(part, centre())
            elif part_name.endswith("sample.conv"):
                carry_on(part, smoothing(2 if part_name.endswith("downsample.conv") else 3))

    third, eye = torch.full((1, 3), 1 / 3), torch.eye(3)
    carry_in(vae.encoder.conv_in, torch.cat([eye, third]))
    carry_out(vae.encoder.conv_out, torch.eye(CARRIED), centre(), 0.0)
    vae.encoder.conv_out.bias[CARRIED:] = -20  # log variance: encode to a point
    carry_in(vae.decoder.conv_in, torch.eye(CARRIED))
    carry_out(vae.decoder.conv_out, torch.cat([0.25 * eye, torch.full((3, 1), 0.15)], 1), centre(), 0.008)
    for conv, gain in ((vae.quant_conv, 1 / scale_factor), (vae.post_quant_conv, scale_factor)):
        conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
        conv.weight[:CARRIED] *= gain
        conv.bias.zero_()
    return vae


def make_clip(tokenizer: Path) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig.from_pretrained(tokenizer))
    embeddings = text.text_model.embeddings
    embeddings.token_embedding.weight.normal_()
    embeddings.position_embedding.weight.normal_(std=0.5)
    enliven(text.text_model.encoder)
    # the WebUI's prompt weights divide by the mean, which must not be near 0
    text.text_model.final_layer_norm.bias.fill_(0.2)
    return text


def make_open_clip(out: Path) -> nn.Module:
    import open_clip

    path = out / f"{ARCHITECTURE}.json"
    tower = {"context_length": 77, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 4, "layers": TEXT_LAYERS}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    path.write_text(json.dumps({"embed_dim": TEXT_WIDTH, "vision_cfg": vision, "text_cfg": tower}, indent=1))
    open_clip.add_model_config(path)
    text = open_clip.create_model(ARCHITECTURE, pretrained=None)
    del text.visual
    text.token_embedding.weight.normal_().add_(0.2)
    text.positional_embedding.normal_(std=0.5)
    enliven(text.transformer)
    return text


def enliven(transformer: nn.Module) -> None:
    """Weights large enough that every token reads the ones before it."""
    for weight in transformer.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[1] ** -0.5)


def write_clip(folder: Path, webui: Path) -> Path:
    """The tokenizer, and the configuration of a narrow text encoder."""
    from transformers import CLIPTextConfig

    write_tokenizer(folder, find_bpe(webui))
    CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        architectures=["CLIPTextModel"],
    ).save_pretrained(folder)
    return folder


def write(path: Path, config: dict, parts: dict[str, nn.Module]) -> None:
    tensors = {
        f"{prefix}.{key}": value for prefix, module in parts.items() for key, value in module.state_dict().items()
    }
    write_checkpoint(path, config, tensors)
    print(f"{path.name}: {sum(value.numel() for value in tensors.values()) / 1e6:.1f} M numbers")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui", type=Path, required=True, help="the WebUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="where the files go; the .yaml files name this place")
    args = parser.parse_args()
    out = args.out.resolve()
    webui = args.webui.resolve()
    import_layouts(webui)
    tokenizer = write_clip(out / "clip", webui)

    for name, kind in (("hps-tiny-sd15", "eps"), ("hps-tiny-sd15-v", "v")):
        torch.manual_seed(SEED)
        config = ldm_config(unet_params(sdxl=False), VAE, tokenizer, SD15_SCALE_FACTOR, kind)
        parts = {
            "model.diffusion_model": make_unet(config["params"]["unet_config"], "sd15", kind),
            "first_stage_model": make_vae(config["params"]["scale_factor"]),
            "cond_stage_model.transformer": make_clip(tokenizer),
        }
        write(out / f"{name}.safetensors", config, parts)

    torch.manual_seed(SEED)
    config = sdxl_config(tokenizer)
    parts = {
        "model.diffusion_model": make_unet(config["params"]["network_config"], "sdxl"),
        "first_stage_model": make_vae(config["params"]["scale_factor"]),
        "conditioner.embedders.0.transformer": make_clip(tokenizer),
        "conditioner.embedders.1.model": make_open_clip(out),
    }
    write(out / "hps-tiny-sdxl.safetensors", config, parts)


if __name__ == "__main__":
    main()
