"""The true-size networks: as many parameters as Stable Diffusion's, and the original code's numbers."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch

from bench.gpu.models import FAMILIES, Networks, families
from bench.gpu.part import Setting
from bench.gpu.unet import SD15_UNET, SDXL_UNET, UNet, UNetSize
from bench.gpu.vae import Decoder
from hpsampler.freeu import decoder_stages

with contextlib.redirect_stdout(io.StringIO()):
    from ldm.modules.diffusionmodules import model as autoencoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

SMALL = UNetSize(32, (1, 2, 4, 4), (1, 1, 1, 0), 24, heads=4)


def parameters(network):
    return sum(each.numel() for each in network.parameters())


def lively(network):
    """The original zero-initialises some layers, which would make every output 0."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.normal_(std=0.05)
    return network.eval()


@pytest.mark.parametrize(("size", "count"), [(SD15_UNET, 859_520_964), (SDXL_UNET, 2_567_463_684)])
def test_the_unets_have_the_true_sizes(size, count):
    with torch.device("meta"):
        assert parameters(UNet(size)) == count


def test_sdxl_s_count_is_that_of_diffusers():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, use_linear_projection=True,
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        assert parameters(theirs) == parameters(UNet(SDXL_UNET))


def test_the_decoder_has_the_true_size():
    with torch.device("meta"):
        theirs = autoencoder.Decoder(
            ch=128, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], in_channels=3,
            resolution=256, z_channels=4,
        )  # fmt: skip
        # and its first convolution, which the original keeps beside it
        assert parameters(Decoder()) == 49_490_199 == parameters(theirs) + 4 * 4 + 4


@torch.no_grad()
def test_a_unet_gives_the_original_s_numbers():
    theirs = lively(
        UNetModel(
            image_size=8, in_channels=4, out_channels=4, model_channels=32, attention_resolutions=[4, 2, 1],
            num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_heads=4, use_spatial_transformer=True, transformer_depth=1,
            context_dim=24, use_checkpoint=False, legacy=False,
        )
    )  # fmt: skip
    ours = UNet(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    x, timesteps, context = torch.randn(2, 4, 16, 24), torch.tensor([3.0, 700.0]), torch.randn(2, 7, 24)
    expected = theirs(x, timesteps, context=context)
    torch.testing.assert_close(ours(x, timesteps, context), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
    # Free-U acts in the same places
    assert [each[1:] for each in decoder_stages(ours)] == [each[1:] for each in decoder_stages(theirs)]


@torch.no_grad()
def test_the_decoder_gives_the_original_s_numbers():
    theirs = lively(
        autoencoder.Decoder(
            ch=32, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], in_channels=3, resolution=64,
            z_channels=4,
        )
    )  # fmt: skip
    ours, latents = Decoder(32).eval(), torch.randn(2, 4, 8, 6)
    identity = {"post_quant_conv.weight": torch.eye(4)[:, :, None, None], "post_quant_conv.bias": torch.zeros(4)}
    ours.load_state_dict({**theirs.state_dict(), **identity})
    expected = theirs(latents)
    torch.testing.assert_close(ours(latents), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


def test_what_the_decoder_of_free_u_finds():
    """At SD 1.5's size nine blocks, and at SDXL's six, get a map of four or two times the channels of the first."""
    with torch.device("meta"):
        found = [[stage[2] for stage in decoder_stages(UNet(size))] for size in (SD15_UNET, SDXL_UNET)]
    assert found == [[4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1], [4, 4, 4, 4, 2, 2, 2, 1, 1]]


def test_the_denoiser_reads_the_timestep_as_the_table_says(tmp_path):
    setting = Setting(torch.device("cpu"), True, tmp_path)
    networks = Networks(families(setting)[0], setting)
    sigmas = torch.tensor([0.01, 0.0292, 0.5, 3.3, 14.6, 20.0])
    expected = torch.from_numpy(networks.noise.sigma_to_t(sigmas.double().numpy())).float()
    torch.testing.assert_close(networks.timesteps(sigmas), expected, rtol=1e-4, atol=0.02)


def test_guidance_and_a_picture(tmp_path):
    setting = Setting(torch.device("cpu"), True, tmp_path)
    for family in families(setting):
        networks = Networks(family, setting)
        x, sigma = networks.unit_noise([1, 2]), torch.ones(2)
        model = networks.denoiser(2, cfg_scale=3.0)
        one, two, three = (model(x, sigma, cond_scale=scale) for scale in (1.0, 2.0, 3.0))
        torch.testing.assert_close(three - two, two - one, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(model(x, sigma), three)
        pictures = networks.decode(x)
        assert pictures.shape == (2, 3, family.side, family.side) and 0 <= pictures.min() <= pictures.max() <= 1


def test_pictures_have_the_sizes_that_the_models_were_trained_at():
    assert [(family.side, family.latent) for family in FAMILIES] == [(512, (4, 64, 64)), (1024, (4, 128, 128))]
