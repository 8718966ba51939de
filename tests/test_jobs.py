"""The workshop: one calibration at a time, in the background; stopped, resumed, renamed, and never lost."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import pytest
import torch

from bench.gpu.place import proving
from hpsampler import jobs
from hpsampler.calibration.job import CalibrationJob, CalibrationRunner
from hpsampler.calibration.profile import ProfileStore
from hpsampler.jobs import Cancelled
from hpsampler.store import StoreError
from hpsampler.unfinished import UnfinishedJobs
from tests.calibration.test_job import Exact, calibrated, config_of

QUICK = {"steps": (4, 5), "runs": 40}


class Gate:
    """Lets a number of the model's calls through, then holds the next until it is opened."""

    def __init__(self, calls):
        self.calls, self.reached, self.opened = calls, threading.Event(), threading.Event()

    def __call__(self, calls):
        if calls >= self.calls:
            self.reached.set()
            assert self.opened.wait(900)


def workshop(tmp_path, source=None, **own):
    return CalibrationRunner(ProfileStore(tmp_path / "calibrations"), lambda config: source or Exact(), **own)


def ended(shop, state):
    assert shop.wait(900)
    assert shop.status().state == state, shop.status().message
    return shop.status()


def test_it_makes_what_a_tuning_makes_and_leaves_nothing_unfinished(tmp_path):
    shop = workshop(tmp_path)
    assert shop.status().state == "idle" and not shop.running
    assert shop.start(config_of(**QUICK)).name == "exact"
    status = ended(shop, "finished")
    assert shop.profiles.get("exact") == calibrated(**QUICK)
    made = shop.profiles.get("exact")
    fits = f"{len(made.joint)} calibrated, {len(made.refused)} refused"
    assert status.message == f"exact is ready: {fits}, {len(made.compared)} comparisons."
    assert shop.unfinished() == [] and list((tmp_path / "calibrations" / "unfinished").iterdir()) == []


def test_a_name_that_is_taken_gets_the_next_free_one(tmp_path):
    shop = workshop(tmp_path)
    for name in ("exact", "exact 2"):
        assert shop.start(config_of(steps=(4,), runs=30)).name == name
        ended(shop, "finished")
    assert shop.profiles.names() == ["exact", "exact 2"]


def test_stopped_and_resumed_by_another_process_it_is_the_same(tmp_path):
    gate = Gate(6 * 200)
    shop = workshop(tmp_path, Exact(before=gate))
    shop.start(config_of(**QUICK))
    assert gate.reached.wait(900)
    with pytest.raises(StoreError, match="'exact' is under way; stop it first, or let it end"):
        shop.start(config_of(name="other"))
    for act in (lambda: shop.rename("exact", "new"), lambda: shop.delete("exact"), lambda: shop.discard("exact")):
        with pytest.raises(StoreError, match="'exact' is under way; stop it first"):
            act()
    shop.stop()
    gate.opened.set()
    status = ended(shop, "stopped")
    assert "can be resumed" in status.message
    (left,) = shop.unfinished()
    assert left.name == "exact" and left.model == "exact"

    later = workshop(tmp_path)
    assert [each.name for each in later.unfinished()] == ["exact"]
    assert later.resume("exact") == config_of(**QUICK)
    ended(later, "finished")
    assert later.profiles.get("exact") == calibrated(**QUICK) and later.unfinished() == []


def test_stopped_while_it_waits_for_its_first_turn_it_makes_no_call(tmp_path):
    held, source = threading.Event(), Exact()

    def turn(work):
        assert held.wait(900)
        return work()

    shop = workshop(tmp_path, source, queue=lambda: turn)
    shop.start(config_of(**QUICK))
    shop.stop()
    held.set()
    ended(shop, "stopped")
    assert source.calls == 0


def test_every_job_has_its_own_queue(tmp_path):
    made = []

    def turns():
        made.append(1)
        return lambda work: work()

    shop = workshop(tmp_path, queue=turns)
    for _ in range(2):
        shop.start(config_of(steps=(4,), runs=30))
        ended(shop, "finished")
    assert len(made) == 2


def test_another_model_cannot_go_on_with_it(tmp_path):
    gate = Gate(6 * 100)
    shop = workshop(tmp_path, Exact(before=gate))
    shop.start(config_of(**QUICK))
    assert gate.reached.wait(900)
    shop.stop()
    gate.opened.set()
    ended(shop, "stopped")
    other = Exact()
    other.model_name, other.hashes = "another", ("0ther",)
    later = workshop(tmp_path, other)
    later.resume("exact")
    status = ended(later, "failed")
    assert "begun with the model exact, and another is loaded now" in status.message and other.calls == 0
    assert [each.name for each in later.unfinished()] == ["exact"]


@pytest.mark.parametrize(("name", "hashes"), [("another", ("feedbeef",)), ("exact", ("0ther",))])
def test_neither_its_name_alone_nor_its_hash_makes_it_the_same_model(tmp_path, name, hashes):
    """After a number of steps is done, so that there is a profile which names the model too."""
    store = ProfileStore(tmp_path / "calibrations")
    gate = Gate(0)
    shop = workshop(tmp_path, Exact(before=lambda calls: store.names() and gate(calls)))
    shop.start(config_of(**QUICK))
    assert gate.reached.wait(900)
    shop.stop()
    gate.opened.set()
    ended(shop, "stopped")
    before = store.get("exact")
    other = Exact()
    other.model_name, other.hashes = name, hashes
    later = workshop(tmp_path, other)
    later.resume("exact")
    status = ended(later, "failed")
    assert f"begun with the model exact, and {name} is loaded now" in status.message and other.calls == 0
    assert store.get("exact") == before


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (StoreError("the checkpoint was changed"), "failed", "the checkpoint was changed"),
        (RuntimeError("out of memory"), "failed", r"out of memory \(RuntimeError\). It can be resumed"),
        (Cancelled(), "stopped", "was stopped"),
    ],
)
def test_whatever_ends_it_is_said_and_can_be_resumed(tmp_path, error, state, words, capsys):
    def fail(calls):
        if calls >= 6 * 100:
            raise error

    shop = workshop(tmp_path, Exact(before=fail))
    shop.start(config_of(**QUICK))
    status = ended(shop, state)
    assert re.search(words, status.message)
    assert [each.name for each in shop.unfinished()] == ["exact"]
    later = workshop(tmp_path)
    later.resume("exact")
    ended(later, "finished")


def test_a_job_that_cannot_start_leaves_nothing(tmp_path):
    def refuse(config):
        raise StoreError("prompts must not call extra networks")

    shop = CalibrationRunner(ProfileStore(tmp_path / "calibrations"), refuse)
    shop.start(config_of(**QUICK))
    assert "must not call extra networks" in ended(shop, "failed").message
    assert shop.unfinished() == [] and shop.profiles.names() == []


def test_rename_delete_and_discard_reach_what_is_unfinished(tmp_path):
    shop = workshop(tmp_path)
    shop.start(config_of(steps=(4,), runs=30))
    ended(shop, "finished")
    gate = Gate(6 * 100)
    half = workshop(tmp_path, Exact(before=gate))
    half.start(config_of(name="half"))
    assert gate.reached.wait(900)
    half.stop()
    gate.opened.set()
    ended(half, "stopped")
    with pytest.raises(StoreError, match="an unfinished job is named 'half'"):
        shop.rename("exact", "half")
    shop.profiles.save(replace(shop.profiles.get("exact"), name="half"))
    assert shop.rename("half", "whole") == "whole"
    assert [each.name for each in shop.unfinished()] == ["whole"]
    shop.delete("whole")
    assert shop.unfinished() == [] and shop.profiles.names() == ["exact"]
    for act in (lambda: shop.discard("whole"), lambda: shop.resume("whole")):
        with pytest.raises(StoreError, match="nothing unfinished is named 'whole'; there are: none"):
            act()


def test_a_broken_unfinished_folder_is_left_alone(tmp_path):
    shop = workshop(tmp_path)
    folder = tmp_path / "calibrations" / "unfinished" / "odd"
    folder.mkdir(parents=True)
    deep = "[" * 100_000
    for text in ("", "{", "[]", '{"order": 3}', '{"order": {"name": "x", "steps": "no"}, "model": "m"}', deep):
        (folder / "order.json").write_text(text)
        assert shop.unfinished() == []
    assert folder.exists()


def test_what_is_under_way_in_another_webui_is_left_to_it(tmp_path):
    """Two runners on one folder are two programs: each holds its job by a lock that the other cannot enter."""
    gate = Gate(6 * 100)
    one, other = workshop(tmp_path, Exact(before=gate)), workshop(tmp_path)
    one.start(config_of(**QUICK))
    assert gate.reached.wait(900)
    other.resume("exact")
    assert "'exact' is under way in another WebUI" in ended(other, "failed").message
    for act in (lambda: other.rename("exact", "new"), lambda: other.delete("exact"), lambda: other.discard("exact")):
        with pytest.raises(StoreError, match="'exact' is under way in another WebUI"):
            act()
    gate.opened.set()
    ended(one, "finished")
    assert one.profiles.get("exact") == calibrated(**QUICK) and other.unfinished() == []


def test_a_name_that_another_program_takes_meanwhile_is_not_shared(tmp_path):
    """Both find the name free; the one that comes to its turn later gets the next."""
    turn = threading.Event()

    def wait(work):
        assert turn.wait(900)
        return work()

    late, early = workshop(tmp_path, queue=lambda: wait), workshop(tmp_path)
    small = config_of(steps=(4,), runs=30)
    assert late.start(small).name == "exact" and early.start(small).name == "exact"
    ended(early, "finished")
    turn.set()
    assert ended(late, "finished").config.name == "exact 2"
    assert early.profiles.names() == ["exact", "exact 2"]


def test_where_nothing_was_begun_nothing_is_said_to_be_resumable(tmp_path, capsys):
    def broken(config):
        raise RuntimeError("no such checkpoint")

    shop = CalibrationRunner(ProfileStore(tmp_path / "calibrations"), broken)
    shop.start(config_of(**QUICK))
    assert ended(shop, "failed").message == "exact failed: no such checkpoint (RuntimeError)."


def test_a_read_only_folder_is_named_in_plain_words(tmp_path, monkeypatch, capsys):
    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system", str(self))

    shop = workshop(tmp_path)
    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    shop.start(config_of(**QUICK))
    folder = tmp_path / "calibrations"
    assert ended(shop, "failed").message == f"exact failed: {folder} cannot be written: Read-only file system."
    assert capsys.readouterr().err == ""


def test_a_job_is_begun_once_and_by_the_model_it_was_begun_with(tmp_path):
    """The folder itself says so, before anything that was paid for is read."""
    jobs = UnfinishedJobs(tmp_path / "calibrations", CalibrationRunner.config_of)
    begun = jobs.begin(config_of(**QUICK), "first", list, fresh=True)
    assert jobs.begin(config_of(**QUICK), "first", list, fresh=False) == begun
    with pytest.raises(StoreError, match="it was begun with the model first, and other is loaded now"):
        jobs.begin(config_of(**QUICK), "other", list, fresh=False)
    second = jobs.begin(config_of(**QUICK), "other", lambda: ["EXACT 2"], fresh=True)
    assert (second.name, second.model) == ("exact 3", "other") and second.folder != begun.folder
    assert jobs.names() == ["exact", "exact 3"]


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def test_a_call_is_timed_until_the_device_has_done_it(monkeypatch):
    """A GPU answers with what it has still to do; the time of giving it that would make every estimate too small."""
    told = []
    with proving(torch.device("cpu")) as place:
        monkeypatch.setattr(jobs.time, "perf_counter", lambda: told.append(len(place.stand_in.waits)) or 0.0)
        x = torch.ones(2, 4, 8, 8).to(place.device)
        job = CalibrationJob(config_of(), Exact())
        job._counted(lambda x, sigma: x * 2)(x, x.new_ones(2))
    began, ended = told
    assert ended == began + 1 and job.progress.calls == 2


def test_while_one_is_under_way_the_others_can_be_renamed_and_deleted(tmp_path):
    shop = workshop(tmp_path)
    shop.start(config_of(name="made", steps=(4,), runs=30))
    ended(shop, "finished")
    gate = Gate(0)
    busy = workshop(tmp_path, Exact(before=gate))
    busy.start(config_of(**QUICK))
    assert gate.reached.wait(900)
    assert busy.rename("made", "kept") == "kept"
    busy.delete("kept")
    assert busy.profiles.names() == []
    busy.stop()
    gate.opened.set()
    ended(busy, "stopped")


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_what_waits_for_another_job_is_not_begun_unless_that_one_finishes(tmp_path, how, capsys):
    def fail(calls):
        raise RuntimeError("out of memory")

    gate, source = Gate(0), Exact()
    first = workshop(tmp_path / "one", Exact(before=gate if how == "stopped" else fail))
    second = workshop(tmp_path / "two", source)
    first.start(config_of(**QUICK))
    second.start(config_of(**QUICK), after=first)
    if how == "stopped":
        assert gate.reached.wait(900)
        first.stop()
        gate.opened.set()
    ended(first, how)
    assert "can be resumed" in ended(second, "stopped").message and source.calls == 0
    assert [each.name for each in second.unfinished()] == ["exact"]
