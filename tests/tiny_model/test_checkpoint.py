"""The tiny model's checkpoint for the WebUI, without a WebUI: names, shapes, CLIP's rows, and its messages."""

from __future__ import annotations

import gzip
import json
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny_model import checkpoint
from tiny_model.networks import UNET, VAE, TinyDiffusion
from tiny_model.words import CLIP_ROWS, WORDS

MERGED = range(512, checkpoint.CLIP_VOCABULARY - 2)
"""Rows of the words that CLIP's merges make, in their order."""

SCALE_FACTOR = 0.75


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """As many merges as CLIP has, in which the model's words have their numbers; all others are made up."""
    words, made_up = {row: word for word, row in WORDS.items()}, count()
    pairs = (f"{words[row][:-1]} {words[row][-1]}</w>" if row in words else f"q{next(made_up)} q" for row in MERGED)
    path = tmp_path_factory.mktemp("bpe") / checkpoint.BPE
    path.write_bytes(gzip.compress("\n".join(["a heading", *pairs, "behind those that count"]).encode()))
    return path


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return TinyDiffusion().half()


@pytest.fixture(scope="module")
def weights(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_file(dict(untrained.unet.state_dict()), folder / "unet.safetensors")
    save_file(dict(untrained.text.state_dict()), folder / "text.safetensors")
    vae = {**untrained.vae.state_dict(), "latent_scale": torch.tensor(SCALE_FACTOR)}
    save_file(vae, folder / "vae.safetensors")
    return folder


@pytest.fixture(scope="module")
def written(bpe, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "not there yet"
    checkpoint.main(["--bpe", str(bpe), "--out", str(out), "--weights", str(weights)])
    return out


def part(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_the_networks_are_the_model_s(written, untrained):
    state = load_file(written / "hps-tiny.safetensors")
    unet, vae = part(state, "model.diffusion_model."), part(state, "first_stage_model.")
    for stored, network in ((unet, untrained.unet), (vae, untrained.vae)):
        own = network.state_dict()
        assert stored.keys() == own.keys() and all(torch.equal(stored[key], own[key]) for key in own)
    assert len(state) == len(unet) + len(vae) + len(part(state, "cond_stage_model.transformer.text_model."))


def test_the_yaml_says_how_they_are_built(written):
    params = json.loads((written / "hps-tiny.yaml").read_text())["model"]["params"]
    assert params["scale_factor"] == SCALE_FACTOR and params["parameterization"] == "eps"
    assert params["unet_config"]["params"] == UNET
    assert params["first_stage_config"]["params"]["ddconfig"] == VAE
    assert params["cond_stage_config"]["params"]["version"] == str((written / "hps-tiny-clip").resolve())


def test_every_row_of_clip_s_embedding_has_its_word(written, untrained):
    state = load_file(written / "hps-tiny.safetensors")
    embeddings = part(state, "cond_stage_model.transformer.text_model.embeddings.")
    large = embeddings["token_embedding.weight"]
    small = untrained.text.text_model.embeddings.token_embedding.weight
    assert large.shape == (49408, small.shape[1])
    for here, row in enumerate(CLIP_ROWS):
        assert row < 0 or torch.equal(large[row], small[here])
    others = torch.ones(len(large), dtype=torch.bool)
    others[[row for row in CLIP_ROWS if row >= 0]] = False
    assert others.sum() == 49408 - len(WORDS) - 2 and (large[others] == small[2]).all()
    assert embeddings["position_ids"].tolist() == [list(range(77))]


def test_prompts_are_read_as_the_model_reads_them(written, untrained):
    config = CLIPTextConfig.from_pretrained(written / "hps-tiny-clip")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (49406, 49407, 49407)
    text = CLIPTextModel(config).eval()
    stored = part(load_file(written / "hps-tiny.safetensors"), "cond_stage_model.transformer.")
    assert text.load_state_dict(stored, strict=False).missing_keys == []
    tokenizer = CLIPTokenizer.from_pretrained(written / "hps-tiny-clip")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
    caption = "a red lighthouse on a teal background"
    unknown = 1000
    ids = [
        unknown if word == "lighthouse" else tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in caption.split()
    ]
    padded = torch.tensor([([49406, *ids] + 77 * [49407])[:77]])
    with torch.no_grad():
        assert torch.equal(text(padded).last_hidden_state, untrained.float().embed([caption]))


def test_the_vocabulary_is_found_in_the_webui(tmp_path):
    (tmp_path / "webui.py").touch()
    packages = tmp_path / "venv" / "lib" / "python3.10" / "site-packages"
    for package in ("clip", "open_clip"):
        (packages / package).mkdir(parents=True)
        (packages / package / checkpoint.BPE).touch()
        assert checkpoint.find_bpe(tmp_path) == packages / package / checkpoint.BPE


def test_it_says_what_is_missing(bpe, weights, tmp_path, capsys):
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui" / "webui.py").touch()
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"not CLIP's"))
    (tmp_path / "plain").write_text("not gzip")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "unet.safetensors").write_text("x")
    there = ["--weights", str(weights)]
    cases = [
        (["--webui", str(tmp_path / "gone"), *there], ["gone", "webui.py"]),
        (["--webui", str(tmp_path / "webui"), *there], [checkpoint.BPE, "venv", "--bpe"]),
        (["--bpe", str(tmp_path / "gone.gz"), *there], ["gone.gz", "cannot be read"]),
        (["--bpe", str(tmp_path / "plain"), *there], ["plain", "cannot be read"]),
        (["--bpe", str(tmp_path / "text.gz"), *there], ["text.gz", "CLIP's vocabulary"]),
        (["--bpe", str(bpe), "--weights", str(tmp_path)], ["unet.safetensors", "tiny_model.train"]),
        (["--bpe", str(bpe), "--weights", str(tmp_path / "broken")], ["unet.safetensors", "cannot be read"]),
    ]
    for arguments, words in cases:
        with pytest.raises(SystemExit) as stop:
            checkpoint.main([*arguments, "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert stop.value.code == 1 and all(word in said for word in words), said
    assert not (tmp_path / "out" / "hps-tiny.safetensors").exists()
