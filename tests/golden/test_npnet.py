"""NPNet: its authors' code by frozen numbers, the inputs that it refuses, and damaged and malicious files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from hpsampler.golden.cli import main
from hpsampler.golden.npnet import PUBLISHED, SIZE, GoldenNoiseError, NPNet
from hpsampler.golden.weights import UNUSED, convert, load_npnet
from tests.statistics.test_statistics import Bomb, pickled

PRIME = 2**31 - 1


def numbers(key, *shape):
    """Uniform numbers of mean 0 and variance 1, equal on every machine as they come from integer arithmetic."""
    count = torch.arange(math.prod(shape)) + zlib.crc32(key.encode()) % PRIME
    for _ in range(3):
        count = (count % PRIME) ** 2
    return ((count % PRIME / PRIME - 0.5) * 12**0.5).float().reshape(shape)


def weight(key, shape):
    """Weights of a scale at which every part of the network shows in its result."""
    part = numbers(key, *shape)
    if key in ("alpha", "beta"):
        return 1 + 0.1 * part
    if key.endswith("bias_table"):
        return part
    if len(shape) < 2:
        return 0.1 * part + ("norm" in key and key.endswith("weight"))
    # singular vectors have entries of 1/16, singular values of about 16
    scales = {"unet_svd.mlp1.0": 16, "unet_svd.mlp2.0": 16, "unet_svd.mlp3.0": 1 / 16, "unet_svd.mlp4.2": 16}
    return part / math.prod(shape[1:]) ** 0.5 * scales.get(key.removesuffix(".weight"), 1)


def published_form(tensors):
    """The dictionary as its authors save it, with the tensors that are not used."""
    sections = {name: OrderedDict() for name in ("unet_svd", "unet_embedding", "embeeding")}
    for key, value in {**{key: torch.zeros(shape) for key, shape in UNUSED}, **tensors}.items():
        section, _, name = key.partition(".")
        if name:
            sections[section.replace("text_embedding", "embeeding")][name] = value
    sections["unet_svd"]._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() gives it
    single = {key: tensors[key].clone().requires_grad_() for key in ("alpha", "beta")}
    return {**sections, **single}


@pytest.fixture(scope="module")
def tensors():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in NPNet().state_dict().items()}
    return {key: weight(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def published(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "sdxl.pth"
    torch.save(published_form(tensors), path)
    yield path
    path.unlink()  # pytest keeps the files of the last three runs


@pytest.fixture(scope="module")
def converted(published):
    path = published.with_suffix(".safetensors")
    assert convert(published, path) == "SDXL"
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def network(converted):
    return load_npnet(converted)


@pytest.fixture(scope="module")
def z():
    return numbers("noise", 2, 4, SIZE, SIZE)


@pytest.fixture(scope="module")
def e():
    return numbers("prompt", 2, 77, 2048)


@pytest.fixture(scope="module")
def golden(network, z, e):
    return network(z, e)


# ---- the network -----------------------------------------------------------------------------------------------------


def settled_svd(matrix):
    """torch.linalg.svd with signs and digits that do not depend on the machine."""
    u, s, v = SVD(matrix.double())
    signs = u.sum(-2).sign()
    return (u * signs[:, None]).float(), s.float(), (v * signs[:, :, None]).float()


SVD = torch.linalg.svd


def probes(values):
    """Thirteen entries of a tensor, from its first to its last, and the RMS of the whole."""
    at = torch.linspace(0, values.numel() - 1, 13, dtype=torch.float64).long()
    return [*values.flatten()[at].tolist(), float(values.double().square().mean().sqrt())]


def picture():
    return numbers("picture", 1, 3, 224, 224)


REFERENCE = {
    "features": [
        0.78043, -0.54065, -0.99656, 0.22566, 0.09559, -2.18373, 1.94476, -0.10899, 2.05683, -1.95558, -0.36535,
        0.94160, 0.39194, 1.01651,
    ],
    "svd": [
        1.11328, 1.06372, 1.41367, -1.89272, -0.12755, -0.67031, -0.33059, -0.64490, -1.38617, 1.87896, 0.48104,
        -0.11120, 0.45736, 1.11395,
    ],
    "golden": [
        1.28524, 3.43228, 1.60605, -2.72746, -0.58521, -0.70436, -2.22241, -0.43258, -2.40116, 2.88636, 0.41670,
        2.19190, -1.27145, 2.25562,
    ],
}  # fmt: skip
"""Frozen: what the authors' own NPNet (inference/npnet_pipeline.py of xie-lab-ml/Golden-Noise-for-Diffusion-Models at
aa7103e, with timm 0.9.16's Swin, in evaluation mode, on the CPU) makes of these weights and inputs with settled_svd."""


def test_the_swin_features_agree_with_timm(network):
    features = network.unet_embedding.swin(picture())
    assert features.shape == (1, 7, 7, 768)
    np.testing.assert_allclose(probes(features), REFERENCE["features"], rtol=0, atol=1e-4)


def test_the_network_agrees_with_its_authors_code(network, z, e, monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", settled_svd)
    np.testing.assert_allclose(probes(network.unet_svd(z)), REFERENCE["svd"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(probes(network(z, e)), REFERENCE["golden"], rtol=0, atol=1e-4)


def test_the_svd_branch_agrees_with_its_formula_element_by_element(network, z):
    """In float64, with loops, and with this machine's singular vectors."""
    latent = z[0].double().numpy()
    matrix = np.empty((2 * SIZE, 2 * SIZE))
    for channel in range(4):
        down, right = divmod(channel, 2)
        matrix[down * SIZE : (down + 1) * SIZE, right * SIZE : (right + 1) * SIZE] = latent[channel]
    u, s, v = (part.double().numpy() for part in torch.linalg.svd(torch.from_numpy(matrix).float()))
    of = {key: value.double().numpy() for key, value in network.unet_svd.state_dict().items()}

    def layer(name, x):
        return x @ of[f"{name}.weight"].T + of.get(f"{name}.bias", 0.0)

    def perceptron(name, x):
        return layer(f"{name}.2", np.maximum(layer(f"{name}.0", x), 0))

    tokens = perceptron("mlp1", u.T) + perceptron("mlp2", v) + layer("mlp3.0", s)
    qkv = layer("attention.qkv", tokens)
    heads = []
    for head in range(8):
        q, k, values = (qkv[:, part * 256 + head * 32 : part * 256 + (head + 1) * 32] for part in range(3))
        scores = np.exp(q @ k.T / math.sqrt(32))
        heads.append(scores / scores.sum(1, keepdims=True) @ values)
    new = s + perceptron("mlp4", layer("attention.proj", np.concatenate(heads, 1)).mean(0))
    expected = u @ np.diag(new) @ v
    ours = network.unet_svd(z[:1])[0].double().numpy()
    for channel in range(4):
        down, right = divmod(channel, 2)
        part = expected[down * SIZE : (down + 1) * SIZE, right * SIZE : (right + 1) * SIZE]
        np.testing.assert_allclose(ours[channel], part, rtol=0, atol=1e-4)


def test_without_its_three_parts_the_noise_stays(network, z, e):
    off = {
        key: torch.zeros_like(value) for key, value in network.state_dict().items() if key.startswith("unet_svd.mlp4")
    }
    off.update(alpha=torch.zeros(1), beta=torch.zeros(1))
    torch.testing.assert_close(functional_call(network, off, (z, e)), z, rtol=0, atol=1e-4)


def test_one_noise_has_one_result(network, z, e, golden):
    assert not network.training and not any(value.requires_grad for value in network.parameters())
    before = z.clone()
    assert torch.equal(network(z, e), golden) and torch.equal(z, before)


def test_a_row_does_not_depend_on_its_batch(network, z, e, golden):
    turned = network(z.flip(0), e.flip(0)).flip(0)
    alone = torch.cat([network(z[i : i + 1], e[i : i + 1]) for i in range(2)])
    for other in (turned, alone):
        torch.testing.assert_close(other, golden, rtol=0, atol=1e-4)
    shared = network(z, e[:1])
    torch.testing.assert_close(shared[0], golden[0], rtol=0, atol=1e-4)
    assert float((shared[1] - golden[1]).abs().max()) > 0.1, "otherwise the prompt has no effect"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_dtype_of_the_noise_and_the_network_stays_float32(network, z, e, dtype):
    ours = network(z[:1].to(dtype), e[:1].half())
    expected = network(z[:1].to(dtype).float(), e[:1].half().float())
    assert ours.dtype == dtype and torch.equal(ours, expected.to(dtype))


def test_autocast_does_not_reach_it(network, z, e, golden):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16, "otherwise this test proves nothing"
        assert torch.equal(network(z, e), golden)


WIDE = torch.zeros(1, 77, 2048)
UNIT = numbers("unit", 1, 4, SIZE, SIZE)


@pytest.mark.parametrize(
    ("noise", "positive", "words"),
    [
        (UNIT[:, :, :96], WIDE, "NPNet was trained for pictures of 1024 x 1024 alone, got 1024 x 768"),
        (UNIT[:, :, :64, :64], WIDE, "1024 x 1024 alone, got 512 x 512"),
        (UNIT[:, :3], WIDE, "trained for latents of 4 channels, got 3"),
        (UNIT[0], WIDE, r"noise must be floating point of shape \(batch, 4, 128, 128\), got torch.float32 of \(4, 128"),
        (UNIT.long(), WIDE, r"noise must be floating point .* got torch.int64"),
        (
            14.6 * UNIT,
            WIDE,
            r"NPNet works on unit noise, got a standard deviation of 14.6; .* before it is multiplied by",
        ),
        (torch.cat([UNIT, 0.5 * UNIT]), WIDE, "unit noise, got a standard deviation of 0.5"),
        (UNIT * math.nan, WIDE, "unit noise, got a standard deviation of nan"),
        (
            UNIT,
            WIDE[:, :, :768],
            r"reads embeddings 2048 wide \(SDXL or DreamShaper-xl-v2-turbo\), the model's are 768",
        ),
        (
            UNIT,
            WIDE.expand(1, 77, 2048).repeat(1, 2, 1),
            "reads 77 tokens, got 154; of a longer prompt give the first 77",
        ),
        (UNIT, WIDE.expand(2, 77, 2048), "one row, or one for each of 1 images, got 2; give the positive prompt alone"),
        (UNIT, WIDE[0], r"the embedding must have shape \(batch, 77, 2048\), got \(77, 2048\)"),
    ],
)
def test_inputs_it_was_not_trained_for_are_refused(network, noise, positive, words):
    with pytest.raises(GoldenNoiseError, match=words):
        network(noise, positive)


@pytest.mark.parametrize("width", [0, -1, 2.0])
def test_an_invalid_width_is_refused(width):
    with pytest.raises(GoldenNoiseError, match=f"width must be a whole number of at least 1, got {width}"):
        NPNet(width)


def test_one_of_another_width_is_loaded_and_fits_that_model_alone(tmp_path):
    torch.manual_seed(0)
    original = NPNet(64).requires_grad_(False).eval()
    save_file(original.state_dict(), tmp_path / "own.safetensors")
    network = load_npnet(tmp_path / "own.safetensors")
    assert network.width == 64 and not network.model
    positive = torch.ones(1, 77, 64)
    assert torch.equal(network(UNIT, positive), original(UNIT, positive))
    with pytest.raises(GoldenNoiseError, match=r"reads embeddings 64 wide \(of another model\), the model's are 2048"):
        network(UNIT, WIDE)


# ---- files -----------------------------------------------------------------------------------------------------------


def refused(path, words, capsys, out="out.safetensors"):
    """The converter refuses it with one sentence, without a traceback, and leaves no file."""
    target = path.with_name(out)
    assert main(["convert", str(path), str(target)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("error: ") and words in output.err
    assert not list(path.parent.glob(f"*{out}*"))


def test_a_converted_file_is_the_network(network, converted, tensors):
    """The file has every name of a published one, with the tensors that the network does not use."""
    stored = load_file(converted)
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[key], tensors[key]) for key in tensors)
    assert network.width == 2048 and network.model == "SDXL"
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())


def test_a_file_without_metadata_and_in_half_precision(tensors, tmp_path, z, e, golden):
    path = tmp_path / "some.safetensors"
    unused = {key: torch.zeros(shape) for key, shape in UNUSED}
    save_file({key: value.half() for key, value in {**tensors, **unused}.items()}, path)
    network = load_npnet(path)
    path.unlink()
    assert network.model is None and network.alpha.dtype == torch.float32
    assert float((network(z, e) - golden).square().mean().sqrt()) < 0.02 * float(golden.std())


def test_loading_leaves_the_random_numbers_as_they_are(converted):
    before = torch.get_rng_state()
    load_npnet(converted)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def small(tensors):
    """Hunyuan-DiT's shapes, in half precision."""
    linear = tensors["text_embedding.linear.weight"][:, : 77 * 1024]
    return {key: value.half() for key, value in {**tensors, "text_embedding.linear.weight": linear}.items()}


def test_the_command_line_converts_and_knows_the_model(tensors, small, published, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    hunyuan, turbo = tmp_path / "dit.pth", tmp_path / "DreamShaper.pth"
    torch.save(published_form(small), hunyuan)
    turbo.hardlink_to(published)
    target.write_bytes(b"an older file")
    for source, more, model in (
        (hunyuan, (), "Hunyuan-DiT"),
        (turbo, (), "DreamShaper-xl-v2-turbo"),
        (turbo, ("--model", "SDXL"), "SDXL"),
    ):
        assert main(["convert", str(source), str(target), *more]) == 0
        assert capsys.readouterr().out == f"{target}: NPNet for {model}\n"
        network = load_npnet(target)
        assert network.model == model
        assert network.width == {entry.model: entry.width for entry in PUBLISHED}[model]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["DreamShaper.pth", "dit.pth", "out.safetensors"]
    with pytest.raises(GoldenNoiseError, match="has the shape of the NPNet for Hunyuan-DiT, not for 'SDXL'"):
        convert(hunyuan, tmp_path / "no.safetensors", "SDXL")
    for file in (hunyuan, turbo, target):
        file.unlink()


NOT_WEIGHTS = {
    "empty": (b"", "is empty; download it again"),
    "page": (b"\n<!DOCTYPE html><html>" + b" " * 99, "is a web page, not weights; download it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is only a git-lfs pointer to the weights"),
    "text": (b"hello" * 99, "is not a known format of weights"),
    "huge header": ((2**60).to_bytes(8, "little") + b"{}", "is not a known format of weights"),
}


@pytest.mark.parametrize(("content", "words"), NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / "sdxl.pth"
    path.write_bytes(content)
    refused(path, f"sdxl.pth {words}", capsys)
    with pytest.raises(GoldenNoiseError, match=f"sdxl.pth {words}"):
        load_npnet(path)


def test_a_missing_file_is_reported(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "none.pth", "none.pth cannot be read: No such file", capsys)
    refused(tmp_path / "folder", "folder is not a file", capsys)
    for name, words in (("none", "none cannot be read"), ("folder", "folder is not a file")):
        with pytest.raises(GoldenNoiseError, match=words):
            load_npnet(tmp_path / name)


def test_each_format_is_sent_to_its_own_reader(converted, published, tmp_path, capsys):
    with pytest.raises(GoldenNoiseError, match=r"sdxl.pth is a PyTorch file; .* convert sdxl.pth sdxl.safetensors"):
        load_npnet(published)
    link = tmp_path / "sdxl.safetensors"
    link.hardlink_to(converted)
    refused(link, "sdxl.safetensors is a safetensors file already", capsys)
    refused(link, "the new file's name must end in .safetensors, got 'out.pth'", capsys, out="out.pth")


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_header_of_any_length_is_a_safetensors_file(tmp_path, capsys, first):
    """The file's first byte is part of that length, so it may be the one that a pickle or a zip archive begins with."""
    path = tmp_path / "some.safetensors"
    for length in range(0, 256, 8):
        save_file({"a": torch.zeros(1)}, path, {"note": "x" * length})
        if path.read_bytes()[0] == first:
            break
    assert path.read_bytes()[0] == first, "otherwise this test proves nothing"
    with pytest.raises(GoldenNoiseError, match=r"is not an NPNet: it has no text_embedding.linear.weight; it has 'a'"):
        load_npnet(path)
    refused(path, "is a safetensors file already", capsys)


def test_programs_are_refused_and_not_run(tmp_path, capsys):
    path, mark = tmp_path / "sdxl.pth", tmp_path / "mark"
    torch.save({"unet_svd": Bomb(mark)}, path)
    refused(path, "holds something other than tensors, which may be a program; it was not executed", capsys)
    assert not mark.exists()
    torch.load(path, weights_only=False)["unet_svd"].close()
    assert mark.exists(), "otherwise this test proves nothing"
    mark.unlink()
    path.write_bytes(pickled(mark))
    refused(path, "is a bare pickle, which may hold any program; it was not opened", capsys)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", pickled(mark))
    refused(path, "is a TorchScript program, not weights; it was not opened", capsys)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "is an archive, but not one that PyTorch wrote", capsys)
    assert not mark.exists()


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpsampler.golden.weights.MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda *_: pytest.fail("it was unpacked"))
    path = tmp_path / "sdxl.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**21)
    assert path.stat().st_size < 2**14
    refused(path, "it unpacks to more than 1 MB", capsys)
    path.write_bytes(b"\0" * (2**20 + 1))
    refused(path, "the file must be at most 1 MB", capsys)


def test_an_archive_that_unpacks_to_more_than_it_has_is_not_unpacked(tmp_path, capsys, monkeypatch):
    """PyTorch never compresses, and a few kB of zeros would become a GB."""
    path = tmp_path / "sdxl.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sdxl/data.pkl", b"\x80\x02.")
        archive.writestr("sdxl/data/0", bytes(2**20))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("it was unpacked"))
    refused(path, "it unpacks to 1,048,579 bytes, more than it has", capsys)


def test_a_truncated_or_damaged_archive_is_refused(tmp_path, capsys):
    path = tmp_path / "sdxl.pth"
    torch.save({"unet_svd": {"a": torch.ones(500)}}, path)
    whole = path.read_bytes()
    for length in range(4, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path, "sdxl.pth is damaged or cut short", capsys)
    at = whole.index(torch.ones(2).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    refused(path, "sdxl.pth is damaged or cut short (sdxl/data/0); download it again", capsys)


ODD = {
    "meta": torch.zeros(1, device="meta"),
    "sparse": torch.ones(1).to_sparse(),
    "number": 1.0,
}


@pytest.mark.parametrize("alpha", ODD.values(), ids=ODD)
def test_anything_but_a_plain_tensor_is_refused(tmp_path, capsys, alpha):
    path = tmp_path / "sdxl.pth"
    torch.save({"unet_svd": {}, "unet_embedding": {}, "embeeding": {}, "alpha": alpha, "beta": torch.ones(1)}, path)
    refused(path, "sdxl.pth is not an NPNet: 'alpha' must be a plain tensor", capsys)


def test_another_dictionary_is_refused(tmp_path, capsys):
    path = tmp_path / "sdxl.pth"
    rest = {"unet_embedding": {}, "alpha": torch.ones(1), "beta": torch.ones(1)}
    for data, words in (
        (torch.ones(3), "it must hold unet_svd, unet_embedding, embeeding, alpha and beta; it holds Tensor"),
        (
            {"state_dict": {}, 5: 6},
            "it must hold unet_svd, unet_embedding, embeeding, alpha and beta; it holds 'state_dict', '5'",
        ),
        ({**rest, "unet_svd": [1], "embeeding": {}}, "unet_svd must be a dictionary of tensors"),
        ({**rest, "unet_svd": {}, "embeeding": {}}, "it has no text_embedding.linear.weight; it has 'alpha', 'beta'"),
    ):
        torch.save(data, path)
        refused(path, f"sdxl.pth is not an NPNet: {words}", capsys)


QKV = "unet_svd.attention.qkv.weight"
BAD_TENSORS = {
    "missing": ({QKV: None}, f"lacks '{QKV}'"),
    "surplus": ({"unet_svd.more": torch.zeros(1)}, "holds tensors that no NPNet has: 'unet_svd.more'"),
    "shape": ({QKV: torch.zeros(768, 255)}, f"{QKV} must have shape (768, 256), got (768, 255)"),
    "unused shape": ({UNUSED[0][0]: torch.zeros(2)}, f"{UNUSED[0][0]} must have shape (256,), got (2,)"),
    "old timm": (
        {"unet_embedding.swin.layers.0.downsample.norm.weight": torch.zeros(384)},
        "was made with timm before 0.9",
    ),
    "nan": ({QKV: torch.full((768, 256), math.nan)}, f"{QKV} must be finite"),
    "whole numbers": ({QKV: torch.ones(768, 256, dtype=torch.int32)}, f"{QKV} must be floating point, got torch.int32"),
    "empty width": ({"text_embedding.linear.weight": torch.zeros(8, 0)}, "has shape (8, 0), which no NPNet has"),
    "no width": ({"text_embedding.linear.weight": torch.zeros(8, 100)}, "has shape (8, 100), which no NPNet has"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_content_is_refused_from_either_file(small, tmp_path, capsys, changes, words):
    content = {key: value for key, value in {**small, **changes}.items() if value is not None}
    path = tmp_path / "bad.safetensors"
    save_file(content, path)
    with pytest.raises(GoldenNoiseError) as caught:
        load_npnet(path)
    assert "bad.safetensors" in str(caught.value) and words in str(caught.value)
    path.unlink()
    torch.save(published_form(content), tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", words, capsys)
    (tmp_path / "bad.pth").unlink()


def test_a_truncated_safetensors_file_is_refused(converted, tmp_path):
    path = tmp_path / "bad.safetensors"
    with converted.open("rb") as file:
        start = file.read(2**20)
    for length in (9, 64, 1000, len(start)):
        path.write_bytes(start[:length])
        with pytest.raises(GoldenNoiseError, match=r"bad\.safetensors is damaged or cut short"):
            load_npnet(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": "hpsampler-statistics"}, "is not an NPNet: its format is 'hpsampler-statistics'"),
        ({"format": "hpsampler-npnet", "version": "2"}, "version must be 1, got '2'; update HP Sampler"),
        (
            {"format": "hpsampler-npnet", "version": "1", "model": "SD"},
            "has the shape of the NPNet for Hunyuan-DiT, not for 'SD'",
        ),
    ],
)
def test_metadata_of_something_else_is_refused(tmp_path, metadata, words):
    path = tmp_path / "bad.safetensors"
    save_file({"text_embedding.linear.weight": torch.zeros(8, 77 * 1024)}, path, metadata)
    with pytest.raises(GoldenNoiseError, match=f"bad.safetensors.*{words}"):
        load_npnet(path)


def test_a_write_that_fails_leaves_the_file(published, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"an older file")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    assert main(["convert", str(published), str(target)]) == 1
    assert "out.safetensors cannot be written: no room" in capsys.readouterr().err
    assert target.read_bytes() == b"an older file" and len(list(tmp_path.iterdir())) == 1
