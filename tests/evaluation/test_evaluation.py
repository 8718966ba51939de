"""The evaluation, against a fake WebUI that draws tiny pictures and fails on demand."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from hpsampler.evaluation import metrics, report
from hpsampler.evaluation.cli import main
from hpsampler.evaluation.configurations import NAMED, Configuration
from hpsampler.evaluation.drawing import is_whole_png
from hpsampler.evaluation.metrics import Estimate, Moments, Reference, ScoreError, average, frechet, frechet_distance
from hpsampler.evaluation.prompts import captions_of_coco, literal
from hpsampler.evaluation.report import Row
from hpsampler.evaluation.scoring import seconds_per_picture
from hpsampler.recipes import PRESETS
from tiny_model.model import TinyModel
from tiny_model.pictures import SIDE

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.evaluation.test_evaluation"
PROMPTS = ("a red moon", "ein grünes Haus", "月の猫", "🦊 (fox)", "last")
AUTO_6, KARRAS_20 = "HP Auto/HP/6/5.5", "DPM++ 2M/Karras/20/5.5"


def colours(pictures):
    """An extractor without a network: mean and standard deviation of the colours."""
    values = pictures.float()
    return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1)


def classifier(pictures):
    """The tiny model's classifier as an extractor, at its own size."""
    resized = torch.nn.functional.interpolate(pictures.float() / 255, (SIDE, SIDE), mode="area")
    return TinyModel.load().features(resized)


def png(seed, size=(16, 16)):
    file = io.BytesIO()
    pixels = np.random.default_rng(abs(seed)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tiny_clip(transformers, folder):
    """CLIP with random weights and a vocabulary of bytes."""
    folder.mkdir()
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        transformers.CLIPModel(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokens).save_pretrained(folder)
    return folder


def bytes_to_unicode():
    """The characters that stand for bytes in CLIP's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


class Fake:
    """A fake WebUI: the requests it got, and how it answers the next ones."""

    def __init__(self):
        self.requests, self.fail, self.state, self.info, self.auth = [], {}, {}, {}, None
        self.options = {"samples_format": "png", "sd_model_checkpoint": "tiny.safetensors [abc123]", "sd_vae": "None"}
        self.samplers = ["DPM++ 2M", "Euler", "HP Auto"]
        self.lies, self.info_text, self.size = {}, None, None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                name = self.path.removeprefix("/sdapi/v1/").partition("?")[0]
                if fake.auth and self.headers.get("Authorization") != fake.auth:
                    return self.answer(401, {"detail": "Incorrect username or password"})
                schedulers = [("karras", "Karras"), ("automatic", "Automatic"), ("hp", "HP")]
                answers = {
                    "samplers": [{"name": sampler, "aliases": []} for sampler in fake.samplers],
                    "schedulers": [{"name": name, "label": label} for name, label in schedulers],
                    "options": fake.options,
                    "progress": {"progress": 0, "state": fake.state},
                }
                answers.update(fake.lies)
                self.answer(200, answers[name]) if name in answers else self.answer(404, {"detail": "Not Found"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append(body)
                status, words = fake.fail.get(len(fake.requests), fake.fail.get(body["sampler_name"], (200, None)))
                if status != 200:
                    return self.answer(status, words)
                if words == "half":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"images": [')
                    return None
                size = fake.size or (body["width"], body["height"])
                images = [png(body["seed"] + 31 * body["steps"] + number, size) for number in range(body["batch_size"])]
                info = {"sd_model_hash": "abc123", "index_of_first_image": 0, **fake.info}
                if body["batch_size"] > 1:
                    images, info["index_of_first_image"] = [png(-5, size), *images], 1
                images = [base64.b64encode(image).decode() for image in images]
                return self.answer(200, {"images": images, "info": fake.info_text or json.dumps(info)})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def fake():
    webui = Fake()
    yield webui
    webui.server.shutdown()
    webui.server.server_close()


@pytest.fixture
def run(fake, tmp_path, capsys):
    """Run the command; returns its status, its output, and the folders of configurations."""
    (tmp_path / "prompts.txt").write_text(
        "a red moon\n\n  ein grünes Haus \n月の猫\n🦊 (fox)\nlast\n", encoding="utf-8"
    )
    (tmp_path / "real").mkdir()
    for number in range(8):
        (tmp_path / "real" / f"{number}.png").write_bytes(png(1000 + number, (20, 24)))

    def do(*args, command="run", config=(AUTO_6,), prompts="prompts.txt", count=4, **own):
        line = [
            command,
            "--out",
            str(tmp_path / "out"),
            "--url",
            own.get("url", fake.url),
            "--quiet",
            "--device",
            "cpu",
        ]
        line += ["--prompts", str(tmp_path / prompts), "--width", "16", "--height", "16", "--no-clip"]
        line += ["--count", str(count)] if count else []
        line += [part for each in config for part in ("--config", each)]
        if command != "draw" and "--references" not in args:
            line += ["--references", str(tmp_path / "real"), "--reference-size", "16", "--features", f"{HERE}:colours"]
        status = main([*line, *args])
        output = capsys.readouterr()
        folders = sorted(path for path in (tmp_path / "out").glob("*") if path.is_dir())
        return SimpleNamespace(
            status=status, out=output.out, err=output.err, folders=folders, all=output.out + output.err
        )

    return do


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


class TestConfigurations:
    def test_a_configuration_round_trip(self):
        text = "HP Auto/HP/6/5.5?recipe=SD1.5 6 steps&freeu=off&b1=1.20"
        each = Configuration.parse(text)
        assert (each.sampler, each.scheduler, each.steps, each.cfg_scale) == ("HP Auto", "HP", 6, 5.5)
        assert dict(each.settings) == {"recipe": "SD1.5 6 steps", "freeu": "Off", "b1": 1.2}
        assert str(each) == "HP Auto/HP/6/5.5?b1=1.2&freeu=Off&recipe=SD1.5 6 steps"
        assert Configuration.parse(str(each)) == each
        assert Configuration.parse("a/b/Euler/Karras/20/7").sampler == "a/b/Euler"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "sampler/schedule/steps/cfg"),
            ("HP Auto/HP/6", "sampler/schedule/steps/cfg"),
            ("HP Auto//6/5", "sampler/schedule/steps/cfg"),
            ("HP Auto/HP/six/5", "steps must be a whole number from 1 to 150, got 'six'"),
            ("HP Auto/HP/0/5", "steps must be"),
            ("HP Auto/HP/²/5", "steps must be"),
            ("HP Auto/HP/6/high", "cfg must be a number from 1 to 30, got 'high'"),
            ("HP Auto/HP/6/nan", "cfg must be"),
            ("HP Auto/HP/6/5?rho", "name=value"),
            ("HP Auto/HP/6/5?rho=3&rho=4", "each once"),
            ("HP Auto/HP/6/5?enabled=1", "name=value"),
            ("HP Auto/HP/6/5?colour=red", "unknown setting 'colour'"),
            ("HP Auto/HP/6/5?rho=99", "Rho (rho) must be a number"),
            ("HP Auto/HP/6/5?recipe=Mine", "Recipe (recipe) must be one of"),
        ],
    )
    def test_what_is_wrong_is_named(self, run, fake, text, words):
        result = run(config=(text,))
        assert result.status == 1 and words in result.err and "Traceback" not in result.err and not fake.requests

    def test_the_named_configurations_are_those_of_the_paper(self):
        for name, texts in NAMED.items():
            for text in texts:
                each = Configuration.parse(text)
                assert str(each) == str(Configuration.parse(str(each))), name
                recipe = dict(each.settings).get("recipe")
                if recipe:
                    assert PRESETS[recipe].steps == each.steps and each.sampler == "HP Auto" and each.scheduler == "HP"
        assert NAMED["karras-20"] == (KARRAS_20,)
        for name in ("paper-sd15", "paper-sdxl"):
            assert KARRAS_20 in NAMED[name] and {Configuration.parse(text).cfg_scale for text in NAMED[name]} >= {5.5}


COCO = {
    "annotations": [
        {"image_id": 9, "id": 40, "caption": "A second cat."},
        {"image_id": 9, "id": 12, "caption": " A cat\n on a  mat. \n"},
        {"image_id": 3, "id": 77, "caption": "Ein Hund für drei (3) Bälle."},
    ]
}


class TestThePage:
    PAGE = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")

    def test_its_costs_are_right(self):
        for name, texts in NAMED.items():
            steps = sum(Configuration.parse(text).steps for text in texts)
            costs = " | ".join(f"{steps * pictures:,}" for pictures in (5000, 10000, 30000))
            assert f"| `{name}` | {len(texts)} | {steps} | {costs} |" in self.PAGE

    def test_its_commands_are_valid(self, capsys):
        commands = re.findall(r"^python -m hpsampler\.evaluate (.*)$", self.PAGE, re.M)
        assert len(commands) == 9
        for command in commands:
            # after valid configurations, the missing files are the first error
            line = shlex.split(command)
            assert main(line if line[0] in ("draw", "score") else ["draw", *line]) == 1
            words = capsys.readouterr().err
            assert "No such file" in words or "there is no folder val2014" in words, command


class TestPrompts:
    def test_coco_gives_one_for_each_picture(self):
        assert captions_of_coco(json.dumps(COCO)) == ["Ein Hund für drei (3) Bälle.", "A cat on a mat."]
        for wrong in ("[]", "{}", "nothing", '{"annotations": [{}]}', '{"annotations": [{"image_id": 1, "id": 2}]}'):
            with pytest.raises(ValueError, match="COCO"):
                captions_of_coco(wrong)

    def test_a_caption_is_a_sentence(self):
        assert literal("STOP (a [b]) \\ AND <lora:x:1> BREAK SAND") == r"STOP \(a \[b\]\) \\ and  lora:x:1  break SAND"

    def test_captions_are_sent_as_sentences_and_prompts_as_they_are(self, run, fake, tmp_path):
        (tmp_path / "coco.json").write_text(json.dumps(COCO), encoding="utf-8")
        assert run(command="draw", prompts="coco.json", count=None).status == 0
        assert [body["prompt"] for body in fake.requests] == [r"Ein Hund für drei \(3\) Bälle.", "A cat on a mat."]
        fake.requests.clear()
        assert run(command="draw", count=None).status == 0
        assert [body["prompt"] for body in fake.requests] == [
            "a red moon",
            "ein grünes Haus",
            "月の猫",
            "🦊 (fox)",
            "last",
        ]

    def test_what_is_wrong_is_said(self, run, tmp_path):
        (tmp_path / "empty.txt").write_text("\n \n")
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
        (tmp_path / "wrong.json").write_text("{}")
        for name, words in (
            ("none.txt", "No such file"),
            ("empty.txt", "no prompts"),
            ("bytes.txt", "decode"),
            ("wrong.json", "COCO"),
        ):
            result = run(prompts=name)
            assert result.status == 1 and words in result.err and name in result.err
        assert "needs 9 prompts" in run(count=9).err


class TestDrawing:
    def test_the_request_is_what_was_configured(self, run, fake):
        text = "HP Auto/HP/6/5.5?recipe=SD1.5 6 steps&freeu=Off"
        assert run("--seed", "7", command="draw", config=(text, KARRAS_20), count=2).status == 0
        first, second, third, _ = fake.requests
        assert (first["sampler_name"], first["scheduler"], first["steps"], first["cfg_scale"]) == (
            "HP Auto",
            "HP",
            6,
            5.5,
        )
        assert first["alwayson_scripts"] == {"HP Sampler": {"args": [{"recipe": "SD1.5 6 steps", "freeu": "Off"}]}}
        assert (first["seed"], second["seed"], third["seed"]) == (7, 8, 7)
        assert (first["prompt"], second["prompt"]) == ("a red moon", "ein grünes Haus") and first[
            "negative_prompt"
        ] == ""
        # explicit, as the WebUI may start with a preset
        assert third["alwayson_scripts"] == {"HP Sampler": {"args": [{"enabled": False}]}}

    def test_a_webui_without_hp_sampler_draws_the_others(self, run, fake):
        fake.samplers.remove("HP Auto")
        assert run(command="draw", config=(KARRAS_20,)).status == 0
        assert "alwayson_scripts" not in fake.requests[0]
        assert "no HP Sampler" in run(config=("DPM++ 2M/Karras/6/5?freeu=On",)).err

    def test_an_interruption_costs_only_the_running_request(self, run, fake, tmp_path):
        fake.fail[3] = (200, "half")
        broken = run(command="draw")
        assert broken.status == 1 and "no answer from" in broken.err
        assert sorted(pictures(broken.folders[0])) == ["000000.png", "000001.png"]
        resumed = run(command="draw")
        assert resumed.status == 0 and [body["seed"] for body in fake.requests] == [0, 1, 2, 2, 3]
        (folder,) = resumed.folders
        kept = pictures(folder)
        assert not list(folder.glob("*.part"))
        again = run(command="draw")
        assert again.status == 0 and len(fake.requests) == 5 and pictures(folder) == kept
        manifest = (folder / "manifest.json").read_bytes()
        folder.rename(tmp_path / "interrupted")
        (whole,) = run(command="draw").folders
        assert whole == folder and pictures(whole) == kept and (whole / "manifest.json").read_bytes() == manifest

    def test_ctrl_c_says_how_to_continue(self, run, fake, monkeypatch):
        class Pressed:
            def __init__(self, *_):
                pass

            begin = end = lambda self, *_: None

            def add(self, count):
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("hpsampler.evaluation.cli.ProgressBar", Pressed)
            result = run(command="draw")
        assert result.status == 130 and "same command" in result.err and len(pictures(result.folders[0])) == 1
        assert run(command="draw").status == 0 and len(fake.requests) == 4

    @pytest.mark.parametrize("left", [0, 7, 60, -1])
    def test_a_truncated_picture_is_drawn_again(self, run, fake, left):
        (folder,) = run(command="draw").folders
        kept = pictures(folder)
        (folder / "000002.png").write_bytes(kept["000002.png"][:left])
        fake.requests.clear()
        assert run(command="draw").status == 0
        assert [body["seed"] for body in fake.requests] == [2] and pictures(folder) == kept

    def test_more_can_be_drawn_later(self, run, fake):
        (folder,) = run(command="draw", count=2).folders
        assert run(command="draw", count=5).folders == [folder]
        assert [body["seed"] for body in fake.requests] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        "changed",
        [
            {"args": ("--seed", "1")},
            {"args": ("--negative", "blurry")},
            {"args": ("--height", "24")},
            {"args": ("--batch", "2")},
            {"config": ("HP Auto/HP/6/5",)},
            {"config": (AUTO_6 + "?rho=6",)},
            {"prompts": "others.txt"},
            {"options": {"sd_model_checkpoint": "other.safetensors"}},
            {"options": {"CLIP_stop_at_last_layers": 2}},
        ],
        ids=str,
    )
    def test_other_settings_use_another_folder(self, run, fake, tmp_path, changed):
        (tmp_path / "others.txt").write_text("a red moon\na blue one\nthree\nfour\nfive\n")
        (folder,) = run(command="draw").folders
        kept = pictures(folder)
        fake.options.update(changed.pop("options", {}))
        result = run(*changed.pop("args", ()), command="draw", **changed)
        assert result.status == 0 and len(result.folders) == 2 and pictures(folder) == kept

    def test_a_model_whose_hash_becomes_known_is_the_same(self, run, fake):
        fake.options["sd_model_checkpoint"] = "tiny.safetensors"
        run(command="draw")
        fake.options["sd_model_checkpoint"] = "tiny.safetensors [abc123]"
        assert len(run(command="draw").folders) == 1 and len(fake.requests) == 4

    def test_a_folder_of_something_else_is_left_alone(self, run):
        (folder,) = run(command="draw").folders
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["asked"]["seed"] = 5
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        assert "another run" in run(command="draw").err
        (folder / "manifest.json").write_text("{")
        assert "cannot be read" in run(command="draw").err
        (folder / "manifest.json").unlink()
        result = run(command="draw")
        assert result.status == 1 and "their settings are unknown" in result.err and len(pictures(folder)) == 4

    def test_another_model_in_between_is_not_mixed_in(self, run, fake):
        (folder,) = run(command="draw", count=2).folders
        fake.info = {"sd_model_hash": "fff000", "extra_generation_params": {"HP Calibration": "mine 1a2b"}}
        result = run(command="draw")
        assert result.status == 1 and len(pictures(folder)) == 2
        assert "sd_model_hash was 'abc123' and is 'fff000'" in result.err and "HP Calibration was None" in result.err

    def test_a_batch_is_of_one_prompt_and_its_grid_is_left_out(self, run, fake):
        (folder,) = run("--batch", "2", command="draw", count=3).folders
        assert [(body["prompt"], body["seed"], body["batch_size"]) for body in fake.requests] == [
            ("a red moon", 0, 2),
            ("ein grünes Haus", 2, 2),
        ]
        expected = {f"{index:06d}.png": png(index + 31 * 6) for index in range(3)}
        assert pictures(folder) == expected

    def test_whole_pictures(self):
        data = png(1)
        assert is_whole_png(data)
        flipped = bytearray(data)
        flipped[60] ^= 1
        for broken in (b"", data[:-1], data + b"x", bytes(flipped), b"JFIF" + data[4:]):
            assert not is_whole_png(broken)


class TestErrors:
    def test_not_reachable(self, run):
        result = run(url="http://127.0.0.1:9")
        assert result.status == 1 and "no answer from http://127.0.0.1:9" in result.err
        assert "no answer from localhost" in run(url="localhost:7860").err

    def test_started_without_api(self, run, fake):
        assert "--api" in run(url=fake.url + "/else").err

    def test_user_and_password(self, run, fake):
        fake.auth = "Basic " + base64.b64encode("ä:b".encode()).decode()
        assert "--auth user:password" in run().err
        fake.options["samples_format"] = "webp"
        assert "webp" in run("--auth", "ä:b").err

    def test_unknown_sampler_or_schedule(self, run, fake):
        result = run(config=("HP Otto/HP/6/5", "Euler/Kerras/6/5"))
        assert result.status == 1 and not fake.requests
        assert "no sampler 'HP Otto'; it has: DPM++ 2M, Euler, HP Auto" in result.err
        assert "no schedule type 'Kerras'; it has: Karras, Automatic, HP" in result.err

    @pytest.mark.parametrize("lie", [None, [], 5, "x", [None], [{"name": 3}], {"name": "x"}, [[]]], ids=str)
    @pytest.mark.parametrize("route", ["samplers", "schedulers", "options", "progress"])
    def test_a_webui_that_answers_something_else(self, run, fake, route, lie):
        if (route, lie) in (("samplers", []), ("schedulers", []), ("options", {"name": "x"})):
            pytest.skip("a WebUI may have none, or others")
        fake.lies[route] = lie
        result = run(command="draw")
        assert result.status == 1 and fake.url in result.err and result.err.count("\n") == 1, result.err

    @pytest.mark.parametrize("info", ["[]", "null", "5", "[" * 100_000, '{"index_of_first_image": Infinity}', "{"])
    def test_a_picture_s_info_that_is_none(self, run, fake, info):
        fake.info_text = info
        result = run(command="draw")
        assert result.status == 1 and "the WebUI's answer holds no pictures" in result.err

    def test_pictures_of_another_size_are_none(self, run, fake):
        fake.size = (24, 16)
        result = run(command="draw")
        assert result.status == 1 and "the WebUI drew 24x16 where 16x16 was asked for" in result.err
        assert not pictures(result.folders[0])

    @pytest.mark.parametrize("info", [{"all_seeds": [7]}, {"seed": 7}, {"all_seeds": []}, {"all_seeds": [0, 1]}])
    def test_pictures_of_other_seeds_are_none(self, run, fake, info):
        fake.info = info
        result = run(command="draw")
        assert result.status == 1 and "where [0] were asked for" in result.err and not pictures(result.folders[0])

    def test_seeds_as_asked_are_taken(self, run, fake):
        fake.info = {"all_seeds": [0, 1], "seed": 0}
        assert run("--batch", "2", command="draw", count=2).status == 0
        fake.info = {"seed": 0}
        assert run("--batch", "2", "--negative", "blurry", command="draw", count=2).status == 0

    def test_what_a_webui_says_is_not_carried_out_by_the_terminal(self, run, fake):
        fake.samplers = ["\x1b[2JEuler"]
        assert r"\x1b[2JEuler" in run(command="draw").err

    @pytest.mark.parametrize("command", ["run", "score"])
    def test_what_is_missing_is_said_before_a_network_is_loaded(self, run, tmp_path, monkeypatch, capsys, command):
        monkeypatch.setattr(metrics, "clip_scorer", lambda *_: pytest.fail("CLIP was loaded"))
        line = [command, "--out", str(tmp_path / "out"), "--quiet"]
        for args, words in (
            ([], "no configurations" if command == "run" else "holds no drawn configurations"),
            (["--config", AUTO_6], "no prompts" if command == "run" else "holds no drawn configurations"),
            (["--config", AUTO_6, "--prompts", str(tmp_path / "none")], "none" if command == "run" else "holds no"),
            (["--references", str(tmp_path / "nowhere")], "nowhere"),
        ):
            assert main([*line, *args]) == 1
            assert words in capsys.readouterr().err

    def test_an_error_stops_its_configuration_alone(self, run, fake):
        fake.fail["HP Auto"] = (500, {"error": "SettingsError", "detail": "", "errors": "HP Sampler: Rho is wrong"})
        result = run(config=(AUTO_6, KARRAS_20))
        assert result.status == 3 and f"{AUTO_6}: the WebUI answered 500: HP Sampler: Rho is wrong" in result.err
        assert [body["sampler_name"] for body in fake.requests] == ["HP Auto", *["DPM++ 2M"] * 4]
        table = (result.folders[0].parent / "table.md").read_text(encoding="utf-8")
        assert KARRAS_20 in table and "Not measured: HP Auto" in table

    def test_the_message_of_the_webui_is_shown(self, run, fake):
        fake.fail[1] = (422, {"detail": [{"loc": ["body", "steps"], "msg": "not an integer"}]})
        assert "422: body.steps: not an integer" in run(command="draw").err
        fake.fail[2] = (502, b"<html>Bad Gateway</html>")
        assert "502" in run(command="draw").err

    @pytest.mark.parametrize("what", ["interrupted", "skipped", "stopping_generation"])
    def test_an_interrupted_webui(self, run, fake, what):
        fake.state = {what: True}
        result = run(command="draw", config=(AUTO_6, KARRAS_20))
        assert result.status == 1 and "Interrupt" in result.err and len(fake.requests) == 1
        assert not pictures(result.folders[0])

    def test_nothing_to_do(self, run, tmp_path):
        assert "--named" in run(config=()).err
        assert "no drawn configurations" in run(command="score").err
        assert "there is no folder" in run("--references", str(tmp_path / "none")).err
        (tmp_path / "no").mkdir()
        assert "at least 2 pictures" in run("--references", str(tmp_path / "no")).err

    def test_missing_libraries_are_named_before_anything_is_drawn(self, run, fake, monkeypatch, tmp_path, capsys):
        monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        monkeypatch.setitem(sys.modules, "transformers", None)
        result = run("--references", str(tmp_path / "real"))
        assert result.status == 1 and "pip install torch-fidelity" in result.err and not fake.requests
        prompts = str(tmp_path / "prompts.txt")
        assert main(["--out", str(tmp_path / "x"), "--prompts", prompts, "--config", AUTO_6, "--url", fake.url]) == 1
        assert "pip install transformers" in capsys.readouterr().err and not fake.requests

    def test_extractors_that_cannot_be_used(self, run, fake):
        for name, words in (
            ("colours", "module:function"),
            ("no.such:f", "cannot be imported"),
            (f"{HERE}:none", "no function 'none'"),
            ("torch:zeros_like", "must have shape"),
        ):
            result = run("--features", name)
            assert result.status == 1 and words in result.err, name


class TestFrechet:
    def test_the_distance_of_a_set_to_itself_is_zero(self):
        features = np.random.default_rng(0).normal(size=(300, 12)) @ np.diag(np.arange(1.0, 13))
        assert abs(frechet(features, Reference.of(features)).value) < 1e-9
        subset = features[:6]  # fewer pictures than features: the covariance is singular
        assert abs(frechet(subset, Reference.of(subset)).value) < 1e-7 * subset.var(0).sum()

    def test_the_distance_of_gaussians_agrees_with_the_formula(self):
        rng = np.random.default_rng(1)
        a, b = (each @ each.T for each in rng.normal(size=(2, 9, 9)))
        means = rng.normal(size=(2, 9))
        plain = ((means[0] - means[1]) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
        assert frechet_distance(Moments(means[0], a), Moments(means[1], b)) == pytest.approx(plain, rel=1e-9)
        # of diagonal ones, in closed form
        deviations = rng.uniform(0.5, 2, size=(2, 9))
        closed = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
        diagonal = [Moments(mean, np.diag(each**2)) for mean, each in zip(means, deviations)]
        assert frechet_distance(*diagonal) == pytest.approx(closed, rel=1e-12)
        # of a shifted sample, the squared shift
        rows = rng.normal(size=(50, 4))
        assert frechet(rows + 2, Reference.of(rows)).value == pytest.approx(16)

    def test_its_standard_error_agrees_with_the_spread_over_samples(self):
        rng = np.random.default_rng(2)
        reference = Reference(Moments(np.zeros(5), np.eye(5)), 0)
        found = [frechet(rng.normal(loc=0.5, size=(400, 5)), reference) for _ in range(60)]
        spread = np.std([each.value for each in found])
        assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.25)

    def test_what_cannot_be_compared(self):
        reference = Reference.of(np.random.default_rng(0).normal(size=(9, 3)))
        for wrong in (np.zeros((9, 2)), np.zeros((1, 3)), np.full((9, 3), np.nan), np.zeros(9)):
            with pytest.raises(ScoreError, match="features"):
                frechet(wrong, reference)
        assert np.isnan(frechet(np.eye(3)[:2], reference).error)

    def test_averages(self):
        assert average(np.array([1.0, 3.0])) == Estimate(2.0, 1.0)
        assert np.isnan(average(np.array([1.0])).error)


class TestScoring:
    def test_table_sheet_and_plot(self, run, tmp_path):
        result = run(config=(AUTO_6, KARRAS_20))
        assert result.status == 0, result.all
        table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
        assert f"| {AUTO_6} |" in table and "| FID |" in table and "8 pictures" in table and "CLIP" not in table
        with (tmp_path / "out" / "table.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["configuration"] for row in rows] == [AUTO_6, KARRAS_20]
        for row in rows:
            assert float(row["fid"]) > 0 and float(row["fid_error"]) > 0 and float(row["seconds"]) > 0
            assert row["pictures"] == "4" and row["checkpoint"] == "tiny.safetensors"
        with Image.open(tmp_path / "out" / "plot.png") as plot:
            assert plot.format == "PNG" and plot.width > 300
        features = metrics.features_of(sorted(result.folders[0].glob("*.png")), colours)
        names = [folder.name for folder in result.folders]
        real = metrics.reference_of(tmp_path / "real", colours, (16, 16))
        by_folder = {row["folder"]: float(row["fid"]) for row in rows}
        assert by_folder[names[0]] == pytest.approx(frechet(features, real).value)

    def test_it_can_be_done_later_and_without_a_webui(self, run, tmp_path, fake):
        assert run(command="draw", config=(AUTO_6, KARRAS_20)).status == 0
        folder = run(command="draw", config=("Euler/Karras/5/5",), count=2).folders[1]
        result = run(command="score", config=(), count=None, url="http://127.0.0.1:9")
        assert result.status == 0
        (folder / "000001.png").unlink()
        result = run(command="score", config=(), count=None, url="http://127.0.0.1:9")
        assert result.status == 3 and "unfinished: 1 of 2" in result.err
        text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
        assert KARRAS_20 in text and f"Not measured: {folder.name}" in text

    def test_nothing_measured_is_a_failure(self, run, fake):
        fake.fail["HP Auto"] = (500, {"errors": "out of memory"})
        result = run()
        assert result.status == 1 and "nothing could be measured" in result.err and "out of memory" in result.err

    def test_nothing_to_measure_is_a_failure(self, fake, tmp_path, capsys):
        (tmp_path / "p.txt").write_text("one\n")
        line = ["--out", str(tmp_path / "o"), "--prompts", str(tmp_path / "p.txt"), "--config", AUTO_6, "--quiet"]
        assert main([*line, "--no-clip", "--url", fake.url]) == 1
        assert "--references" in capsys.readouterr().err

    def test_a_picture_that_cannot_be_read_is_named(self, run, tmp_path):
        (tmp_path / "real" / "broken.jpg").write_bytes(b"not a picture")
        result = run()
        assert result.status == 1 and "broken.jpg cannot be read" in result.err and "Traceback" not in result.err

    def test_references_of_the_inception_network_are_read_once(self, tmp_path):
        for number in range(4):
            (tmp_path / f"{number}.png").write_bytes(png(number))
        read = []

        def extract(batch):
            read.append(len(batch))
            return colours(batch)

        first = metrics.reference_of(tmp_path, extract, (16, 16), tmp_path)
        again = metrics.reference_of(tmp_path, extract, (16, 16), tmp_path)
        assert read == [4] and again.count == 4 and frechet_distance(first.moments, again.moments) < 1e-9
        (kept,) = tmp_path.glob("references-*.npz")
        kept.write_bytes(kept.read_bytes()[:50])
        metrics.reference_of(tmp_path, extract, (16, 16), tmp_path)
        (tmp_path / "5.png").write_bytes(png(5))
        assert metrics.reference_of(tmp_path, extract, (16, 16), tmp_path).count == 5 and read == [4, 4, 5]

    def test_clip_scores_each_picture_against_its_prompt(self, run, tmp_path):
        transformers = pytest.importorskip("transformers")
        model = tiny_clip(transformers, tmp_path / "clip")
        (folder,) = run(command="draw", count=4).folders
        assert main(["score", "--out", str(tmp_path / "out"), "--quiet", "--clip", str(model), "--device", "cpu"]) == 0
        with (tmp_path / "out" / "table.csv").open(encoding="utf-8-sig", newline="") as file:
            (row,) = csv.DictReader(file)
        # one by one, from the library's scores
        network = transformers.CLIPModel.from_pretrained(model).eval()
        processor = transformers.CLIPProcessor.from_pretrained(model)
        expected = []
        for path, prompt in zip(sorted(folder.glob("*.png")), PROMPTS):
            inputs = processor(text=[prompt], images=Image.open(path), return_tensors="pt", padding=True)
            with torch.no_grad():
                cosine = network(**inputs).logits_per_image / network.logit_scale.exp()
            expected.append(max(100 * cosine.item(), 0))
        assert len(set(expected)) == 4 and float(row["clip"]) == pytest.approx(np.mean(expected), rel=1e-4)
        assert float(row["clip_error"]) == pytest.approx(np.std(expected, ddof=1) / 2, rel=1e-3)
        score = metrics.clip_scorer(str(model), "cpu")
        assert score([torch.zeros(3, 8, 8, dtype=torch.uint8)], ["long " * 300]).shape == (1,)
        with pytest.raises(ScoreError, match="cannot be loaded"):
            metrics.clip_scorer(str(tmp_path / "none"), "cpu")

    def test_seconds_are_the_median(self, tmp_path):
        assert seconds_per_picture(tmp_path) is None
        (tmp_path / "seconds.csv").write_text("0,2,90\n2,2,4\n4,2,2\n6,2,3\n8,")
        assert seconds_per_picture(tmp_path).value == 1.75

    def test_the_tiny_models_classifier_as_extractor(self, tmp_path):
        model = TinyModel.load()
        generator = torch.Generator().manual_seed(0)
        drawn = (model.decode(torch.randn(12, 4, 12, 12, generator=generator)) * 255).byte()
        for number, picture in enumerate(drawn):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02d}.png")
        extract = metrics.features_named(f"{HERE}:classifier", "cpu")
        found = metrics.features_of(metrics.images_in(tmp_path), extract)
        assert found.shape == (12, 64)
        assert np.allclose(found, model.features(drawn.float() / 255).numpy(), atol=1e-4)
        reference = metrics.reference_of(tmp_path, extract, (96, 96))
        assert abs(frechet(found, reference).value) < 1e-3 * reference.moments.covariance.trace()
        assert frechet(found[:6], reference).value > 0.01 * reference.moments.covariance.trace()


def test_without_matplotlib_the_plot_is_svg(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rows = [
        Row("<a> & b|c", "f", {"steps": 6}, {"fid": Estimate(20.0, 1.0), "clip": Estimate(31.0, float("nan"))}),
        Row("ü", "g", {"steps": 8}, {"fid": Estimate(18.0, 0.5)}),
    ]
    table, _, plot = report.write_report(rows, ["a note"], tmp_path)
    text = plot.read_text(encoding="utf-8")
    assert plot.suffix == ".svg" and "&lt;a&gt; &amp; b" in text and text.count("<circle") == 3
    assert "b\\|c" in table.read_text(encoding="utf-8") and "| 31.00 |" in table.read_text(encoding="utf-8")


def test_without_tqdm_progress_is_lines(run, monkeypatch, capsys, tmp_path, fake):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    line = ["draw", "--out", str(tmp_path / "o"), "--prompts", str(tmp_path / "prompts.txt"), "--config", AUTO_6]
    assert main([*line, "--url", fake.url, "--count", "3"]) == 0
    assert f"{AUTO_6}: 3 of 3 pictures" in capsys.readouterr().err
