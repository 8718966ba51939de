"""The command lines that work through a WebUI, against servers that are as they should be, and others."""

from __future__ import annotations

import base64
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hpsampler import calibrate, client, measure
from hpsampler.client import Client, ClientError, RequestRefused, printable
from tests.calibration.test_profile import fitted, profile

PROGRAMS = {
    "calibrate": (calibrate.main, "/hpsampler/calibrations"),
    "measure": (measure.main, "/hpsampler/statistics"),
}

IDLE = {
    "state": "finished", "message": "mine is ready: 1 calibrated.", "name": "mine", "calls": 10, "of": 10,
    "seconds_left": None, "log": ["4 steps: held-out errors"], "unfinished": [],
}  # fmt: skip
RUNNING = {**IDLE, "state": "running", "calls": 4, "seconds_left": 90.0, "message": "Making a calibration.", "log": []}


class Server:
    """Answers each request with the next of what it is told for its method and path, the last one again and again."""

    def __init__(self):
        self.answers, self.requests = {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def respond(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                key = f"{self.command} {self.path}"
                server.requests.append((key, json.loads(body) if body else None, self.headers.get("Authorization")))
                queue = server.answers.get(key, [(404, {"detail": "Not Found"})])
                answer = queue.pop(0) if len(queue) > 1 else queue[0]
                if callable(answer):
                    return answer(self)
                status, content = answer if isinstance(answer, tuple) else (200, answer)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return None

            do_GET = do_POST = do_PATCH = do_DELETE = respond

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def tell(self, key, *answers):
        self.answers[key] = list(answers)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(client, "POLL_SECONDS", 0.0)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def run(server, capsys):
    """Run a command line; returns what it printed, and with what it ended."""

    def do(*args, program="calibrate", url=None):
        code = None
        try:
            PROGRAMS[program][0](["--url", url or server.url, *map(str, args)])
        except SystemExit as stopped:
            code = stopped.code
        found = capsys.readouterr()
        return found.out, found.err, code

    return do


# ---- a server that is as it should be --------------------------------------------------------------------------------


def test_start_sends_what_was_given_and_follows_to_the_end(server, run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red moon\nein grünes Haus\n", encoding="utf-8")
    server.tell("POST /hpsampler/calibrate", {"name": "mine 2"})
    logged = {**RUNNING, "seconds_left": None, "log": IDLE["log"][:1]}
    server.tell("GET /hpsampler/calibrate", RUNNING, logged, {**IDLE, "log": [*IDLE["log"], "5 steps: refused"]})
    out, err, code = run(
        "start", "mine", "--steps", 4, 5, "--cfg", 3, 7.5, "--prompts", prompts, "--seed", 3, "--no-fit"
    )  # fmt: skip
    assert code is None
    assert server.requests[0] == (
        "POST /hpsampler/calibrate",
        {
            "name": "mine",
            "steps": [4, 5],
            "cfg_scales": [3.0, 7.5],
            "seed": 3,
            "fit": False,
            "prompts": "a red moon\nein grünes Haus\n",
        },
        None,
    )  # fmt: skip
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    told = ["4 steps: held-out errors", "5 steps: refused"]
    assert lines == ["Started: mine 2", *told, "mine is ready: 1 calibrated."], "each line once"
    assert "4 of at most 10 UNet calls, at most 1.5 min of drawing left" in err and err.count("UNet calls") == 2


def test_measuring_sends_its_own_fields(server, run):
    server.tell("POST /hpsampler/measure", {"name": "mine"})
    server.tell("GET /hpsampler/measure", IDLE)
    run("start", "mine", "--cfg", 5, "--samples", 8, "--points", 31, "--per-pixel", program="measure")
    assert server.requests[0][1] == {"name": "mine", "cfg_scale": 5.0, "samples": 8, "points": 31, "per_pixel": True}


@pytest.mark.parametrize("program", PROGRAMS)
def test_user_and_password_go_with_every_request(server, run, program):
    act = {"calibrate": "/hpsampler/calibrate", "measure": "/hpsampler/measure"}[program]
    results = PROGRAMS[program][1]
    server.tell(f"GET {results}", {"calibrations": [], "statistics": [], "problems": []})
    server.tell(f"GET {act}", IDLE)
    run("--auth", "ä:b", "list", program=program)
    expected = "Basic " + base64.b64encode("ä:b".encode()).decode()
    assert [login for _, _, login in server.requests] == [expected] * 2
    for code in (401, 403):
        server.tell(f"GET {results}", (code, {"detail": "Incorrect username or password"}))
        said = run("list", program=program)[2]
        assert said == f"{server.url} requires another user and password: --auth user:password"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_asks_its_route(server, run, program):
    act, results = {"calibrate": "/hpsampler/calibrate", "measure": "/hpsampler/measure"}[program], PROGRAMS[program][1]
    server.tell(f"GET {act}", IDLE)
    for key, body in {
        f"POST {act}/resume": {"name": "a b"}, f"POST {act}/stop": {"message": "Stopping."},
        f"POST {act}/discard": {"discarded": "a b"}, f"PATCH {results}/a%20b%2Fc": {"name": "new"},
        f"DELETE {results}/a%20b%2Fc": {"deleted": "a b/c"},
    }.items():  # fmt: skip
        server.tell(key, body)
    cases = [
        (("resume", "a b"), f"POST {act}/resume", {"name": "a b"}, IDLE["message"]),
        (("watch",), f"GET {act}", None, IDLE["message"]),
        (("stop",), f"POST {act}/stop", None, "Stopping."),
        (("discard", "a b"), f"POST {act}/discard", {"name": "a b"}, "Discarded: a b"),
        (("rename", "a b/c", "new"), f"PATCH {results}/a%20b%2Fc", {"name": "new"}, "Renamed: new"),
        (("delete", "a b/c"), f"DELETE {results}/a%20b%2Fc", None, "Deleted: a b/c"),
    ]
    for args, key, body, words in cases:
        server.requests.clear()
        out, _, code = run(*args, program=program)
        assert server.requests[0][:2] == (key, body) and words in out and code is None, args


def test_a_job_that_failed_is_an_error(server, run):
    server.tell("GET /hpsampler/calibrate", {**IDLE, "state": "failed", "message": "mine failed: out of memory."})
    out, _, code = run("watch")
    assert code == 1 and "out of memory" in out


def test_the_list_of_calibrations(server, run):
    errors = {"held_out": {"calibrated": 0.0123456, "Auto": 0.5}, "yardstick": 0.25}
    mine = {
        "name": "mine", "model": "a model", "width": 512, "height": 768,
        "fitted": [{"cfg_scale": 7.5, "steps": 5, **errors}],
        "joint": [{"steps": 6, "low": 2, "high": 10, "measured": [{"cfg_scale": 2, **errors}, {
            "cfg_scale": 10, "held_out": {"calibrated": 1e-3}, "yardstick": 2,
        }]}],
        "refused": [{"cfg_scale": 3, "steps": 4}],
    }  # fmt: skip
    figures_of = {
        "Auto": {"distance": 0.2, "pictures": 0.3},
        "statistics, order 1": {"distance": 0.3, "pictures": -0.1},
    }
    mine["compared"] = [{"steps": 5, "cfg_scale": 7, "figures": figures_of, "statistics": "mine 0a1b2c3d"}]
    server.tell("GET /hpsampler/calibrations", {"calibrations": [mine], "problems": ["x.json: not a JSON file"]})
    server.tell("GET /hpsampler/calibrate", {**IDLE, "unfinished": ["half", "other"]})
    figures = "held-out error 0.01235, Auto 0.5, 20 steps of DPM++ 2M Karras 0.25"
    assert run("list")[0].splitlines() == [
        "mine: a model, 512x768",
        f"  CFG 7.5, 5 steps: {figures}",
        "  6 steps, CFG 2 to 10:",
        f"    at CFG 2 {figures}",
        "    at CFG 10 held-out error 0.001, Auto nan, 20 steps of DPM++ 2M Karras 2",
        "  CFG 3, 4 steps: refused",
        "  CFG 7, 5 steps: best pictures by statistics, order 1, nearest by Auto, of 2 ways compared",
        "x.json: not a JSON file",
        "Unfinished: half, other",
    ]


def test_the_list_of_statistics(server, run):
    rows = [{"name": "mine", "source": {"cfg_scale": 5, "samples": 64}}, {"name": "theirs", "source": {}}]
    server.tell("GET /hpsampler/statistics", {"statistics": rows, "problems": []})
    server.tell("GET /hpsampler/measure", IDLE)
    assert run("list", program="measure")[0].splitlines() == [
        "mine: cfg_scale 5, samples 64",
        "theirs: in the published layout, of an unknown model",
    ]


def test_export_and_import(server, run, tmp_path):
    content = json.loads(profile("mine", fitted(last=0.1)).to_json())
    server.tell("GET /hpsampler/calibrations/mine", content)
    server.tell("POST /hpsampler/calibrations", {"name": "mine 2"})
    assert run("export", "mine", tmp_path / "x.json")[0] == f"Written: {tmp_path / 'x.json'}\n"
    assert run("import", tmp_path / "x.json")[0] == "Calibration: mine 2\n"
    assert server.requests[-1][1] == content


# ---- others ----------------------------------------------------------------------------------------------------------

COMMANDS = [("list",), ("watch",), ("stop",), ("rename", "a", "b"), ("start", "mine"), ("resume", "a")]
DEEP = ("[" * 100_000).encode()
LIES = [None, [], 5, "text", {}, {"name": 3}, {"name": None, "message": []}, {"log": 1, "state": "running"},
        {"log": [], "state": "running", "calls": "x", "of": 1}, {"log": [{}], "state": 0}, {"calibrations": [[]]},
        {"calibrations": [{"name": "x"}], "statistics": [{"name": "x", "source": 3}], "problems": {}},
        {"log": [], "state": "running", "calls": 1, "of": 2, "seconds_left": "soon", "message": 5}]  # fmt: skip


def everywhere(server, answer):
    for program, (_, results) in PROGRAMS.items():
        act = {"calibrate": "/hpsampler/calibrate", "measure": "/hpsampler/measure"}[program]
        for key in (f"GET {act}", f"POST {act}", f"POST {act}/resume", f"POST {act}/stop", f"GET {results}",
                    f"PATCH {results}/a"):  # fmt: skip
            server.tell(key, answer)


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("args", COMMANDS, ids=lambda args: args[0])
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_answers_than_expected_are_told(server, run, program, args, lie):
    everywhere(server, lie)
    _, _, code = run(*args, program=program)
    assert isinstance(code, str) and f"{server.url} answered what no HP Sampler of this version does" in code
    assert "must be" in code or "is missing" in code


@pytest.mark.parametrize(
    "body", [b"<html>", b"", DEEP, b"\xff\xfe", b'{"name": '], ids=["html", "empty", "deep", "bytes", "cut"]
)
@pytest.mark.parametrize("args", COMMANDS, ids=lambda args: args[0])
def test_an_answer_that_is_no_json_is_told(server, run, args, body):
    everywhere(server, (200, body))
    assert "is not JSON" in run(*args)[2]


def dies(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"state": "runn')


def hangs_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [dies, hangs_up])
@pytest.mark.parametrize("args", COMMANDS, ids=lambda args: args[0])
def test_a_server_that_dies_in_mid_answer_is_told(server, run, args, answer):
    everywhere(server, answer)
    assert f"no answer from {server.url}" in run(*args)[2]


def test_a_job_outlives_a_server_s_silence(server, run):
    server.tell("POST /hpsampler/calibrate", {"name": "mine"})
    server.tell("GET /hpsampler/calibrate", RUNNING, dies)
    out, _, code = run("start", "mine")
    assert "Started: mine" in out and "no answer from" in code and "`watch` follows it again" in code


def test_a_slow_server_is_not_waited_for_without_end(server):
    release = threading.Event()

    def drips(handler):
        handler.send_response(200)
        handler.end_headers()
        while not release.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    def silent(handler):
        release.wait(300)

    server.tell("GET /drips", drips)
    server.tell("GET /silent", silent)
    try:
        with pytest.raises(ClientError, match=r"took longer than 0\.3 seconds"):
            Client(server.url, timeout=0.3).ask("GET", "/drips")
        with pytest.raises(ClientError, match=r"no answer from .*timed out"):
            Client(server.url, timeout=0.3).ask("GET", "/silent")
    finally:
        release.set()


def test_a_long_answer_is_not_read_without_end(server, monkeypatch):
    monkeypatch.setattr(client, "MAX_ANSWER", 1000)
    server.tell("GET /x", (200, b" " * 200_000))
    with pytest.raises(ClientError, match="has more than"):
        Client(server.url).ask("GET", "/x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "HP Sampler: name is taken"}, "answered 422: HP Sampler: name is taken"),
        ({"detail": [{"loc": ["body", "x"], "msg": "missing"}, "odd", {"loc": 3}]}, "body.x: missing; odd; 3: None"),
        ({"errors": "Traceback", "detail": "", "error": "Exception"}, "answered 422: Traceback"),
        ({"error": "Exception"}, "answered 422: Exception"),
        ({}, "answered 422: {}"),
        ([1], r"answered 422: \[1\]"),
        (DEEP, "answered HTTP Error 422"),
        (b"<html>", "answered HTTP Error 422"),
    ],
)  # fmt: skip
def test_the_message_of_an_error_is_found(server, body, words):
    server.tell("GET /x", (422, body))
    with pytest.raises(RequestRefused, match=words) as refused:
        Client(server.url).ask("GET", "/x")
    assert refused.value.status == 422


def test_an_error_whose_body_never_comes_is_still_told(server):
    def cut(handler):
        handler.send_response(500)
        handler.send_header("Content-Length", "500")
        handler.end_headers()

    server.tell("GET /x", cut)
    with pytest.raises(RequestRefused, match="answered HTTP Error 500"):
        Client(server.url).ask("GET", "/x")


def test_missing_routes_say_what_is_missing(server, run):
    assert "has no HP Sampler, or was started without --api" in run("list")[2]
    with pytest.raises(ClientError, match="has no /sdapi/v1/x; start the WebUI with --api"):
        Client(server.url).ask("GET", "/sdapi/v1/x?y=1")


def test_an_address_without_a_scheme_is_http(server, run):
    server.tell("GET /hpsampler/calibrate", IDLE)
    assert IDLE["message"] in run("watch", url=server.url.removeprefix("http://"))[0]
    assert "no answer from localhost:9" in run("watch", url="localhost:9")[2]


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "", "://x", "http://host:99999"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_address_that_is_none_is_refused(run, program, url):
    code = run("watch", program=program, url=url or " ")[2]
    assert code.startswith("--url must be an address such as")


def test_files_that_cannot_be_read_or_written_are_named(server, run, tmp_path):
    everywhere(server, {"name": "mine"})
    server.tell("GET /hpsampler/calibrations/mine", {"name": "mine"})
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    for broken, words in {"": "not a JSON file", "{": "not a JSON file", "[" * 100_000: "not a JSON file"}.items():
        (tmp_path / "broken.json").write_text(broken)
        assert run("import", tmp_path / "broken.json")[2].startswith(f"{tmp_path / 'broken.json'}: {words}")
    for args in (("import", tmp_path / "none.json"), ("start", "mine", "--prompts", tmp_path / "none.txt")):
        assert run(*args)[2] == f"{args[-1]}: No such file or directory"
    assert run("start", "mine", "--prompts", tmp_path / "bytes.txt")[2].startswith(f"{tmp_path / 'bytes.txt'}: ")
    assert run("import", tmp_path)[2] == f"{tmp_path}: Is a directory"
    assert "No such file or directory" in run("export", "mine", tmp_path / "none" / "x.json")[2]
    assert run("start", "mine", "--prompts", tmp_path / "none.txt", program="measure")[2].endswith(
        "No such file or directory"
    )
    assert not [key for key, _, _ in server.requests if key.startswith("POST")], "nothing was started"


def test_nothing_that_a_server_says_is_carried_out_by_the_terminal(server, run):
    escape = "\x1b[2J\x1b]0;title\x07\u202e\r"
    shown = r"\x1b[2J\x1b]0;title\x07\u202e\r"
    everywhere(server, {"name": escape, "message": escape, "state": "finished", "log": [escape], "unfinished": [escape],
                        "calibrations": [], "statistics": [{"name": escape, "source": {"model_name": escape}}],
                        "problems": [escape]})  # fmt: skip
    for program in PROGRAMS:
        for args in COMMANDS:
            out, err, _ = run(*args, program=program)
            assert shown in out and not set("\x1b\x07\u202e") & set(out + err), (program, args)
    server.tell("GET /hpsampler/calibrate", (500, {"error": escape}))
    assert run("watch")[2].startswith(f"the WebUI answered 500: {shown}")
    assert printable("a\nb ü 月") == "a\nb ü 月"


def test_ctrl_c_says_that_the_job_goes_on(server, run, monkeypatch):
    server.tell("GET /hpsampler/calibrate", RUNNING)
    monkeypatch.setattr(client.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    _, err, code = run("watch")
    assert code == 130 and "`watch` follows it" in err
