"""Several threads and programs in one folder: nothing is lost, and what a killed one left behind goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpsampler.files import FolderBusy, held, locked, part_beside, rename_new, sweep, write_atomically
from hpsampler.presets import Preset, PresetStore
from hpsampler.statistics.coefficients import Statistics
from hpsampler.statistics.files import add_statistics, load_statistics, rename_statistics, statistics_files
from hpsampler.store import StoreError

ROOT = Path(__file__).resolve().parents[1]

SAVES = """
import sys
from pathlib import Path
from hpsampler.presets import Preset, PresetStore
store = PresetStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    print(store.save(Preset.of("mine", {"rho": float(sys.argv[2])})).name, flush=True)
"""

HOLDS = """
import sys
from pathlib import Path
from hpsampler.files import locked, held
with (locked if sys.argv[2] == "folder" else held)(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
"""

DIES = """
import os, sys
from pathlib import Path
from hpsampler.files import part_beside
with part_beside(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os._exit(1)
"""


def program(text, *args):
    started = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert text is DIES or started.stdout.readline() == "ready\n"
    return started


def statistics(value):
    return Statistics(np.array([-1.0, 0.0, 1.0]), *(np.full((3, 1, 1, 1), value) for _ in range(3)))


def test_programs_that_save_one_name_at_once_keep_all(tmp_path):
    """Each is told a name of its own, under which its own values lie."""
    folder = tmp_path / "presets"
    programs = [program(SAVES, folder, 2 + number) for number in range(6)]
    for each in programs:
        each.stdin.write("\n")
        each.stdin.flush()
    told = {}
    for number, each in enumerate(programs):
        for name in each.communicate(timeout=300)[0].split("\n"):
            if name:
                assert name not in told
                told[name] = 2.0 + number
    items, problems = PresetStore(folder).read()
    assert problems == [] and {each.name: each.settings["rho"] for each in items} == told and len(told) == 18


def test_a_rename_waits_for_whoever_writes(tmp_path):
    store = PresetStore(tmp_path / "presets")
    store.save(Preset.of("mine", {"rho": 3}))
    other = program(HOLDS, store.folder, "folder")
    renaming = threading.Thread(target=lambda: store.rename("mine", "yours"))
    renaming.start()
    renaming.join(0.3)
    assert renaming.is_alive() and store.names() == ["mine"]
    other.communicate("\n", timeout=300)
    renaming.join(300)
    assert store.names() == ["yours"]


def test_a_program_that_hangs_is_told_and_one_that_died_is_not_waited_for(tmp_path):
    other = program(HOLDS, tmp_path / "presets", "folder")
    with pytest.raises(FolderBusy, match="another program is writing in"), locked(tmp_path / "presets", 0.05):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "presets", 0.05):
        pass


def test_a_lock_is_one_s_alone_also_within_a_process(tmp_path):
    with held(tmp_path / "lock"), pytest.raises(FolderBusy, match="held here"), held(tmp_path / "lock", 0, "held here"):
        pass
    with held(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_overwrites_one(tmp_path, monkeypatch, links):
    """Also one that a program wrote which knows nothing of locks, and where there are no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    path = tmp_path / "one.json"
    write_atomically(path, "first", new=True)
    with pytest.raises(FileExistsError):
        write_atomically(path, "second", new=True)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, "third")
    assert path.read_text() == "third"


def test_a_store_takes_the_next_name_where_a_file_appears_meanwhile(tmp_path, monkeypatch):
    store = PresetStore(tmp_path / "presets")
    intruder = Preset.of("mine", {"rho": 9}).to_json()
    once, own = iter([True]), PresetStore._new_path

    def appears(self, name):
        path = own(self, name)
        if next(once, False):
            path.write_text(intruder)
        return path

    monkeypatch.setattr(PresetStore, "_new_path", appears)
    assert store.save(Preset.of("mine", {"rho": 3})).name == "mine 2"
    assert {each.name: each.settings["rho"] for each in store.read()[0]} == {"mine": 9, "mine 2": 3}


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_added_under_a_name_of_their_own(tmp_path):
    assert [add_statistics(statistics(value), tmp_path, "mine") for value in (0.1, 0.2, 0.3)] == [
        "mine",
        "mine 2",
        "mine 3",
    ]
    (tmp_path / "other.safetensors").mkdir()
    assert add_statistics(statistics(0.4), tmp_path, "other") == "other 2"
    found = {name: float(load_statistics(path).l.flat[0]) for name, path in statistics_files(tmp_path).items()}
    assert found == pytest.approx({"mine": 0.1, "mine 2": 0.2, "mine 3": 0.3, "other 2": 0.4})


def test_threads_that_add_statistics_at_once_keep_all(tmp_path):
    threads = [
        threading.Thread(target=add_statistics, args=(statistics(number / 10), tmp_path, "mine")) for number in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(300)
    values = sorted(float(load_statistics(path).l.flat[0]) for path in statistics_files(tmp_path).values())
    np.testing.assert_allclose(values, np.arange(8) / 10)


def test_names_of_statistics_that_differ_in_case_alone_are_one_name(tmp_path):
    """On Windows and macOS they would be one file."""
    add_statistics(statistics(0.1), tmp_path, "Foo")
    assert add_statistics(statistics(0.2), tmp_path, "foo") == "foo 2"
    add_statistics(statistics(0.3), tmp_path, "bar")
    for wrong in ("foo", "FOO", "Foo", "foo 2", "FOO 2"):
        with pytest.raises(StoreError, match="name must be a new one; there are statistics named"):
            rename_statistics(tmp_path, "bar", wrong)
    rename_statistics(tmp_path, "bar", "BAR")
    assert list(statistics_files(tmp_path)) == ["BAR", "Foo", "foo 2"]
    with pytest.raises(StoreError, match="there are no statistics named 'bar'"):
        rename_statistics(tmp_path, "bar", "baz")


def test_a_rename_overwrites_nothing(tmp_path):
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "one", tmp_path / "two")
    add_statistics(statistics(0.1), tmp_path, "mine")
    (tmp_path / "yours.safetensors").mkdir()
    with pytest.raises(StoreError, match="there is a file named 'yours' already"):
        rename_statistics(tmp_path, "mine", "yours")
    assert list(statistics_files(tmp_path)) == ["mine"]


# ---- what is left behind ---------------------------------------------------------------------------------------------


def test_what_a_killed_program_left_behind_goes_with_the_next_write(tmp_path):
    folder = tmp_path / "presets"
    folder.mkdir()
    assert program(DIES, folder / "mine.json").wait(300) == 1
    (left,) = folder.iterdir()
    assert left.name.startswith("mine.json.") and left.suffix == ".part"
    PresetStore(folder).save(Preset.of("yours", {}))
    assert [path.name for path in folder.iterdir()] == ["yours.json"]


def test_only_what_nobody_writes_any_more_goes(tmp_path):
    alive, dead = os.getpid(), program(DIES, tmp_path / "x")
    dead.wait(300)
    now, long_ago = time.time(), time.time() - 7200
    cases = {
        f"a.{alive}-1.part": (now, True),
        f"b.{dead.pid}-1.part": (now, False),
        f"c.{alive}-1.part": (long_ago, False),
        # of another machine that shares the folder: the process says nothing here
        f"d.00000000-{dead.pid}-1.part": (now, True),
        f"e.00000000-{dead.pid}-1.part": (long_ago, False),
        "notes.part": (long_ago, True),
        "x.safetensors": (long_ago, True),
        f"f.{10**30}-1.part": (now, False),
    }
    for name, (written, _) in cases.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (written, written))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, (_, stays) in cases.items() if stays}


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), part_beside(tmp_path / "x") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="needs a user who may not write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: Permission denied"):
        write_atomically(tmp_path / "x.json", "text")


@pytest.mark.parametrize("method", ["write_text", "write_bytes"])
def test_the_message_names_the_folder_and_not_the_temporary_file(tmp_path, monkeypatch, method):
    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, method, read_only)
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "x.json", "text" if method == "write_text" else b"bytes")
    assert str(caught.value) == f"{tmp_path} cannot be written: Read-only file system"
    assert json.dumps(str(caught.value)).count("part") == str(tmp_path).count("part")


def test_threads_are_kept_apart_where_the_file_system_knows_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("hpsampler.files._lock", lambda file: True)
    entered = threading.Event()

    def enter():
        with locked(tmp_path / "x"):
            entered.set()

    other = threading.Thread(target=enter)
    with locked(tmp_path / "x"):
        other.start()
        assert not entered.wait(0.2)
    other.join(300)
    assert entered.is_set()
