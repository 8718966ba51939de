"""Statistics: their checks, their files including damaged and malicious ones, and how they are measured."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hpsampler.solvers import sample_dpm_v3, sample_dpmpp_2m
from hpsampler.statistics.coefficients import Provenance, Statistics, StatisticsError
from hpsampler.statistics.config import calls_needed
from hpsampler.statistics.estimator import SUMS, Estimator
from hpsampler.statistics.files import convert_published, load_published, load_statistics, save_statistics

SOURCE = Provenance("a1b2c3", "some model", "sd15", 7.5, 4, 6, 1024)


def random_statistics(points=11, shape=(2, 4, 6), dtype=np.float32, source=SOURCE):
    rng = np.random.default_rng(0)
    l, s, b = (rng.standard_normal((points, *shape)).astype(dtype) for _ in range(3))  # noqa: E741
    return Statistics(np.linspace(-2.7, 3.5, points), l, s, b, source)


def same(one, other):
    names = ("lambdas", "l", "s", "b")
    return one.source == other.source and all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)


# ---- checks ----------------------------------------------------------------------------------------------------------


def test_the_arrays_are_read_only_copies():
    l = np.ones((3, 1, 2, 2))  # noqa: E741
    statistics = Statistics(np.array([0, 1, 2]), l, l, l)
    l[:] = 5
    assert (statistics.l == 1).all() and statistics.lambdas.dtype == np.float64
    for array in (statistics.lambdas, statistics.l, statistics.s, statistics.b):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_one_number_per_grid_point_is_enough():
    line = np.linspace(0, 1, 5)
    statistics = Statistics(line, line, line, line)
    assert statistics.l.shape == (5, 1, 1, 1) and statistics.size is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lambdas": np.array([0.0, 1.0, 1.0])}, "lambdas must rise, got 1 then 1 at index 1"),
        ({"lambdas": np.array([2.0, 1.0, 0.0])}, "lambdas must rise"),
        ({"lambdas": np.array([0.0, 1.0, math.nan])}, "lambdas must be finite, got nan"),
        ({"lambdas": np.array([0.0])}, "lambdas must be one row of 2 to 4096"),
        ({"lambdas": np.zeros((3, 1))}, "lambdas must be one row"),
        ({"lambdas": np.array(["a", "b", "c"])}, "lambdas must be one row"),
        ({"lambdas": np.arange(4.0)}, "l must have shape \\(4, channels"),
        ({"s": np.ones((3, 1, 2, 3))}, "l, s and b must have one shape"),
        ({"s": np.ones((3, 2, 2))}, "s must have shape"),
        ({"b": np.full((3, 1, 2, 2), np.inf)}, "b must be finite, got inf"),
        ({"b": np.full((3, 1, 2, 2), 1e30)}, "b must be from -10000 to 10000, got 1e\\+30"),
        ({"s": np.full((3, 1, 2, 2), -2e4)}, "s must be from -10000 to 10000, got 20000"),
        ({"l": np.ones((3, 1, 2, 2), np.float16)}, "l must be float32 or float64, got float16"),
        ({"l": np.ones((3, 1, 2, 2), np.int64)}, "l must be float32 or float64, got int64"),
        ({"l": np.ones((3, 0, 2, 2))}, "l must have shape"),
    ],
)
def test_invalid_arrays_are_refused_with_a_message(changes, words):
    ones = np.ones((3, 1, 2, 2))
    with pytest.raises(StatisticsError, match=words):
        Statistics(**{"lambdas": np.arange(3.0), "l": ones, "s": ones, "b": ones, **changes})


def test_between_grid_points_they_are_linear_in_lambda():
    statistics = random_statistics()
    for i in (0, 4, 10):
        values = statistics.at(math.exp(-statistics.lambdas[i]))
        for got, expected in zip(values, (statistics.l[i], statistics.s[i], statistics.b[i])):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    between = statistics.at(math.exp(-(0.25 * statistics.lambdas[4] + 0.75 * statistics.lambdas[5])))
    np.testing.assert_allclose(between[1], 0.25 * statistics.s[4] + 0.75 * statistics.s[5], rtol=1e-5, atol=1e-6)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(StatisticsError, match="sigma must be a finite number above 0"):
            statistics.at(sigma)


def test_resized_is_smooth_and_says_so():
    statistics = random_statistics(3, (1, 4, 6), np.float64)
    grown = statistics.resized(8, 12)
    assert grown.l.shape == (3, 1, 8, 12) and grown.source == statistics.source
    np.testing.assert_allclose(grown.s.mean((2, 3)), statistics.s.mean((2, 3)), atol=0.1)
    assert statistics.l.min() <= grown.l.min() and grown.l.max() <= statistics.l.max()
    shrunk = statistics.resized(2, 3)
    np.testing.assert_allclose(shrunk.b.mean((2, 3)), statistics.b.mean((2, 3)), atol=0.2)
    assert statistics.resized(4, 6) is statistics and statistics.size_note(4, 6) == ""
    assert statistics.size_note(8, 12) == (
        "These statistics were measured on latents of 6x4 and are stretched to 12x8: a guess, the picture may be "
        "worse than without them."
    )
    pooled = random_statistics(3, (4, 1, 1))
    assert pooled.resized(99, 3) is pooled and pooled.size_note(99, 3) == ""
    for height, width in ((0, 4), (4, -1), (4.0, 4), (10**9, 4)):
        with pytest.raises(StatisticsError, match=r"(height|width) must be a whole number from 1 to 65536"):
            statistics.resized(height, width)


def test_the_solver_accepts_them():
    statistics, x = random_statistics(shape=(4, 3, 2)), torch.randn(2, 4, 3, 2)
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3])
    assert torch.isfinite(sample_dpm_v3(lambda x, sigma: x * 0.5, x, sigmas, statistics=statistics)).all()
    with pytest.raises(ValueError, match="resized"):
        sample_dpm_v3(lambda x, sigma: x, torch.ones(1, 4, 6, 4), sigmas, statistics=statistics)
    fitting = statistics.resized(6, 4)
    sample_dpm_v3(lambda x, sigma: x * 0.5, torch.ones(1, 4, 6, 4), sigmas, statistics=fitting)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_round_trip(tmp_path, dtype):
    path = tmp_path / "new" / "some.safetensors"
    statistics = random_statistics(dtype=dtype)
    save_statistics(statistics, path)
    assert same(load_statistics(path), statistics)
    assert load_statistics(path).l.dtype == dtype
    assert [file.name for file in path.parent.iterdir()] == ["some.safetensors"]
    bare = random_statistics(source=Provenance())
    save_statistics(bare, path)  # over the first
    assert same(load_statistics(path), bare)


def test_a_write_that_fails_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "some.safetensors"
    save_statistics(random_statistics(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no room")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no room"):
        save_statistics(random_statistics(5), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def metadata_of(**changes):
    return {"about": json.dumps({"format": "hpsampler-statistics", "version": 1, "source": {}, **changes})}


GOOD = {"lambdas": np.arange(3.0), **{name: np.ones((3, 1, 2, 2), np.float32) for name in ("l", "s", "b")}}

BAD_TENSORS = {
    "no l": ({name: array for name, array in GOOD.items() if name != "l"}, metadata_of(), "it lacks l"),
    "other shape": ({**GOOD, "l": np.ones((4, 1, 2, 2), np.float32)}, metadata_of(), "l must have shape"),
    "float16": ({**GOOD, "s": GOOD["s"].astype(np.float16)}, metadata_of(), "s must be float32 or float64, got F16"),
    "whole numbers": (
        {**GOOD, "s": GOOD["s"].astype(np.int32)},
        metadata_of(),
        "s must be float32 or float64, got I32",
    ),
    "nan": ({**GOOD, "b": GOOD["b"] * np.float32("nan")}, metadata_of(), "b must be finite, got nan"),
    "falling grid": ({**GOOD, "lambdas": np.arange(3.0)[::-1].copy()}, metadata_of(), "lambdas must rise"),
    "a checkpoint": ({"model.weight": np.ones((2, 2), np.float32)}, {}, "not a statistics file of HP Sampler"),
    "no format": (GOOD, {}, "format must be 'hpsampler-statistics'"),
    "sums": (GOOD, metadata_of(format="hpsampler-statistics-sums"), "format must be"),
    "version": (GOOD, metadata_of(version=2), "version must be 1, got 2"),
    "no json": (GOOD, {"about": "{"}, "not a JSON file"),
    "deep json": (GOOD, {"about": "[" * 10**5}, "not a JSON file"),
    "no source": (GOOD, {"about": '{"format": "hpsampler-statistics", "version": 1}'}, "source is missing"),
    "guidance": (
        GOOD,
        metadata_of(source={"cfg_scale": "7"}),
        "source.cfg_scale must be a number from 0 to 1000, got '7'",
    ),
    "samples": (GOOD, metadata_of(source={"samples": 1.5}), "source.samples must be a whole number"),
    "name": (GOOD, metadata_of(source={"model_name": 3}), "source.model_name must be a text"),
    "source": (GOOD, metadata_of(source=[1]), "source must be an object"),
}


@pytest.mark.parametrize(("tensors", "metadata", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_content_is_refused_with_the_file_and_the_field(tmp_path, tensors, metadata, words):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(StatisticsError, match=f"bad.safetensors: .*{re.escape(words)}"):
        load_statistics(path)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(path):
    return pickle.dumps(Bomb(path))


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "cut header", "pickle", "huge header", "folder"])
def test_anything_but_a_safetensors_file_is_refused_and_nothing_is_executed(tmp_path, kind):
    path, mark = tmp_path / "bad.safetensors", tmp_path / "mark"
    save_statistics(random_statistics(), path)
    whole = path.read_bytes()
    content = {
        "empty": b"", "text": b"hello" * 99, "cut": whole[:-7], "cut header": whole[:20], "pickle": pickled(mark),
        "huge header": (2**60).to_bytes(8, "little") + whole[8:], "folder": b"",
    }[kind]  # fmt: skip
    path.write_bytes(content)
    if kind == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(StatisticsError, match=r"bad\.safetensors: not a safetensors file"):
        load_statistics(path)
    assert not mark.exists()


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(StatisticsError, match=r"none\.safetensors: there is no such file"):
        load_statistics(tmp_path / "none.safetensors")
    with pytest.raises(StatisticsError, match=r"none\.safetensors: there is no such file"):
        Estimator.load(tmp_path / "none.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "bad.safetensors"
    save_statistics(random_statistics(3, (1, 2, 2)), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(StatisticsError):
            load_statistics(path)


# ---- the published layout --------------------------------------------------------------------------------------------


def publish(folder, statistics):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "l.npz", l=statistics.l)
    np.savez(folder / "sb.npz", s=statistics.s, b=statistics.b)
    return folder


def test_the_published_layout_and_its_conversion(tmp_path, noise):
    statistics = random_statistics(11, (4, 8, 8))
    folder = publish(tmp_path / "7.5_10_1024", statistics)
    read = load_published(folder, noise, Provenance(model_name="SD 1.4"))
    assert read.source == Provenance("", "SD 1.4", "", 7.5, 8, 8, 1024)
    assert all(np.array_equal(getattr(read, name), getattr(statistics, name)) for name in ("l", "s", "b"))
    # the ends of the grid in the paper's repository for Stable Diffusion
    assert read.lambdas[[0, -1]] == pytest.approx([-2.682024, 3.534712], abs=2e-4)
    np.testing.assert_allclose(np.diff(read.lambdas), np.diff(read.lambdas).mean(), rtol=1e-9)
    target = tmp_path / "out" / "sd14.safetensors"
    assert same(convert_published(folder, target, noise, Provenance(model_name="SD 1.4")), load_statistics(target))


def test_a_folder_name_that_does_not_agree_is_ignored(tmp_path, noise):
    for name in ("mine", "7.5_250_1024"):
        assert load_published(publish(tmp_path / name, random_statistics()), noise).source == Provenance(
            height=4, width=6
        )


def rewrite(folder, **arrays):
    np.savez(folder / "l.npz", **arrays)


BAD_ARCHIVES = {
    "missing": (lambda folder, mark: (folder / "l.npz").unlink(), "there is no such file"),
    "empty": (lambda folder, mark: (folder / "l.npz").write_bytes(b""), "not an .npz file of plain arrays"),
    "cut": (lambda folder, mark: (folder / "l.npz").write_bytes((folder / "l.npz").read_bytes()[:-50]), "not an .npz"),
    "text": (lambda folder, mark: (folder / "l.npz").write_text("hello"), "not an .npz file"),
    "pickle": (lambda folder, mark: (folder / "l.npz").write_bytes(pickled(mark)), "not an .npz file"),
    "objects": (lambda folder, mark: rewrite(folder, l=np.array([Bomb(mark)] * 3, object)), "not an .npz file"),
    "bare array": (lambda folder, mark: np.save((folder / "l.npz").open("wb"), np.ones(3)), "not an .npz file"),
    "other name": (lambda folder, mark: rewrite(folder, ell=np.ones(3)), "it must hold an array l, it holds 'ell.npy'"),
    "nothing": (lambda folder, mark: rewrite(folder), "it must hold an array l, it holds nothing"),
    "whole numbers": (lambda folder, mark: rewrite(folder, l=np.ones((11, 2, 4, 6), int)), "l must be float32 or"),
    "nan": (lambda folder, mark: rewrite(folder, l=np.full((11, 2, 4, 6), np.nan)), "l must be finite"),
    "other grid": (lambda folder, mark: rewrite(folder, l=np.ones((12, 2, 4, 6))), "s must have shape"),
    "other shape": (lambda folder, mark: rewrite(folder, l=np.ones((11, 2, 4, 5))), "must have one shape"),
    "one number": (lambda folder, mark: rewrite(folder, l=np.float64(3)), "l must have 2 to 4096 grid points"),
    "flat": (lambda folder, mark: rewrite(folder, l=np.ones((11, 48))), "l must have shape"),
    "raw member": (lambda folder, mark: raw_member(folder, b"hello"), "not an .npz file"),
    "forged header": (lambda folder, mark: raw_member(folder, forged_header(mark)), "not an .npz file"),
    "huge header": (lambda folder, mark: raw_member(folder, huge_header()), "not an .npz file"),
}


def raw_member(folder, content):
    with zipfile.ZipFile(folder / "l.npz", "w") as archive:
        archive.writestr("l.npy", content)


def header(text):
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def forged_header(mark):
    """A header that would create a file if it were evaluated as an expression."""
    return header(f"open({str(mark)!r}, 'w')")


def huge_header():
    """A header that promises more numbers than fit into memory."""
    return header("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 64)}") + b"\0" * 64


@pytest.mark.parametrize(("spoil", "words"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_nothing_in_it_is_executed(tmp_path, noise, spoil, words):
    folder, mark = publish(tmp_path / "bad", random_statistics()), tmp_path / "mark"
    spoil(folder, mark)
    with pytest.raises(StatisticsError, match=re.escape(words)):
        load_published(folder, noise)
    assert not mark.exists()


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path, noise, monkeypatch):
    folder = publish(tmp_path / "bad", random_statistics())
    monkeypatch.setattr("hpsampler.statistics.files.MAX_BYTES", 1000)
    with pytest.raises(StatisticsError, match="l must be at most"):
        load_published(folder, noise)


# ---- measuring: two classes of Gaussians, where every expectation is known -------------------------------------------

SHAPE = (2, 3, 2)
RNG = np.random.default_rng(3)
MEANS = RNG.standard_normal((2, *SHAPE))
VARIANCES = np.exp(RNG.standard_normal((2, *SHAPE)))
GRID = np.linspace(-2.682, 2.5, 105)


def classes(count):
    return torch.arange(count) % 2


def two_gaussians(x, sigma, **_):
    """The denoiser of each row's class."""
    mean, variance = (torch.from_numpy(values).to(x)[classes(len(x))] for values in (MEANS, VARIANCES))
    return mean + variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)


def states(count, seed=0):
    """Exact samples at the grid's highest sigma."""
    z = np.random.default_rng(seed).standard_normal((count, *SHAPE))
    which = classes(count).numpy()
    return torch.from_numpy(MEANS[which] + np.sqrt(VARIANCES[which] + math.exp(-2 * GRID[0])) * z)


def expected_statistics(pool=False):
    """Derived by hand, with u = x - m of variance v + sigma^2, N = q u, u' = -q u and q' = -2 q (1 - q).

    f = (q - l) u - l m and f' = (q' - q^2 - l' + l q) u - l' m, to be averaged over the two classes.
    """
    square = np.exp(-2 * GRID)[:, None, None, None, None]
    q = square / (VARIANCES + square)
    slope = -2 * q * (1 - q)
    axes = (1, 3, 4) if pool else (1,)

    def mean(values):
        return values.mean(axes, keepdims=True)

    l, slope_l = mean(q), mean(slope)  # noqa: E741
    variance = VARIANCES + square
    factor, factor_slope = q - l, slope - q**2 - slope_l + l * q
    f, df = mean(-l * MEANS), mean(-slope_l * MEANS)
    covariance = mean(factor * factor_slope * variance + l * slope_l * MEANS**2) - f * df
    s = covariance / (mean(factor**2 * variance + l**2 * MEANS**2) - f**2)
    return tuple(values[:, 0] for values in (l, s, df - s * f))


def measured(samples, shape=SHAPE, seed=0, smoothing=1, **options):
    estimator = Estimator(GRID, shape, **options)
    estimator.add(two_gaussians, states(samples, seed))
    return estimator.statistics(smoothing)


@pytest.mark.parametrize("options", [{}, {"exact": True}], ids=["differences", "exact"])
def test_measured_statistics_agree_with_the_exact_ones(options):
    statistics, (l, s, b) = measured(4000, **options), expected_statistics()  # noqa: E741
    # the two classes alternate and the Jacobian is diagonal, so l has no sampling error
    np.testing.assert_allclose(statistics.l, l, atol=1e-9)
    inner = slice(1, -1)  # slopes at the ends are one-sided
    assert np.abs(statistics.s - s)[inner].mean() < 0.02 and np.abs(statistics.b - b)[inner].mean() < 0.02
    assert np.abs(statistics.s - s).max() < 0.2 and np.abs(statistics.b - b).max() < 0.2


def test_the_error_falls_with_the_square_root_of_the_samples():
    _, s, _ = expected_statistics()
    error_100, error_1600 = (
        np.mean([np.square(measured(samples, seed=seed).s - s).mean() for seed in range(4)]) ** 0.5
        for samples in (100, 1600)
    )
    assert 2.5 < error_100 / error_1600 < 6.5


def test_pooled_statistics_are_those_of_all_elements_together():
    statistics, (l, s, b) = measured(2000, (2, 1, 1)), expected_statistics(pool=True)  # noqa: E741
    assert statistics.size is None and statistics.l.shape == (len(GRID), 2, 1, 1)
    np.testing.assert_allclose(statistics.l, l, atol=1e-9)
    assert np.abs(statistics.s - s).max() < 0.1 and np.abs(statistics.b - b).max() < 0.1


def test_statistics_of_one_gaussian_make_the_solver_exact():
    mean, variance = torch.from_numpy(MEANS[0]), torch.from_numpy(VARIANCES[0])

    def model(x, sigma, **_):
        return mean + variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)

    estimator = Estimator(GRID, SHAPE)
    estimator.add(model, states(8))
    statistics, x = estimator.statistics(smoothing=1), states(4, 9)
    # f is the same for all samples there, so only its mean can be fitted
    assert not statistics.s[1:-1].any()
    sigmas = torch.tensor([14.6, 3.0, 0.8, 0.1], dtype=torch.float64)
    result = sample_dpm_v3(model, x, sigmas, order=1, statistics=statistics)
    expected = mean + (x - mean) * torch.sqrt((variance + 0.1**2) / (variance + 14.6**2))
    assert (result - expected).abs().max() < 0.01
    assert (sample_dpm_v3(model, x, sigmas, order=1) - expected).abs().max() > 0.3


def test_the_diagonal_of_a_full_jacobian():
    mix = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 4)) / 4)

    def model(x, sigma, **_):
        return (x.flatten(1) @ mix.T).view_as(x)

    estimator = Estimator(np.linspace(-1, 1, 3), (1, 2, 2))
    estimator.add(model, torch.zeros(4000, 1, 2, 2, dtype=torch.float64))
    diagonal = 1 - mix.diagonal().view(1, 2, 2).numpy()
    np.testing.assert_allclose(estimator.statistics(1).l, np.stack([diagonal] * 3), atol=0.03)


def test_smoothing_averages_l_alone():
    rough = measured(50)
    smooth = measured(50, smoothing=5)
    np.testing.assert_allclose(smooth.l[2:-2], sum(rough.l[i : len(GRID) - 4 + i] for i in range(5)) / 5, rtol=1e-9)
    np.testing.assert_allclose(smooth.l[[0, -1]], rough.l[[0, -1]], rtol=1e-9)
    np.testing.assert_allclose(smooth.l[1], rough.l[:3].mean(0), rtol=1e-9)


# ---- measuring: calls, memory, interruptions -------------------------------------------------------------------------


class Counted:
    def __init__(self, breaks_at=None):
        self.calls, self.breaks_at = 0, breaks_at

    def __call__(self, x, sigma, **extra_args):
        assert extra_args == {"cond": 1} and sigma.shape == (len(x),)
        self.calls += 1
        if self.calls == self.breaks_at:
            raise KeyboardInterrupt
        return two_gaussians(x, sigma)


@pytest.mark.parametrize(("exact", "calls"), [(False, 3 * 105 * 2), (True, 3 * 105)])
def test_the_number_of_calls_is_known_beforehand(exact, calls):
    assert calls_needed(10, 4, len(GRID), exact) == calls
    model, estimator, done = Counted(), Estimator(GRID, SHAPE, exact=exact), []
    for count in (4, 4, 2):
        estimator.add(model, states(count), {"cond": 1}, done.append)
    assert model.calls == calls and estimator.samples == 10 and done == [*range(105)] * 3
    for bad in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1.5, 1, 1)):
        with pytest.raises(StatisticsError, match="must be a whole number of at least 1"):
            calls_needed(*bad)


def test_a_resumed_run_gives_the_same_numbers(tmp_path):
    path = tmp_path / "sums.safetensors"
    whole = Estimator(GRID, SHAPE, SOURCE, seed=5)
    whole.add(two_gaussians, states(6, 1))
    whole.save(path)
    whole.add(two_gaussians, states(4, 2))

    resumed = Estimator.load(path)
    assert resumed.samples == 6 and resumed.source == SOURCE
    resumed.add(two_gaussians, states(4, 2))
    assert np.array_equal(resumed.sums, whole.sums)
    assert same(resumed.statistics(), whole.statistics())
    assert resumed.statistics().source.samples == 10


def test_an_interrupted_batch_leaves_the_sums_as_they_were():
    estimator = Estimator(GRID, SHAPE)
    estimator.add(Counted(), states(2), {"cond": 1})
    before = estimator.sums.copy()
    with pytest.raises(KeyboardInterrupt):
        estimator.add(Counted(breaks_at=77), states(2), {"cond": 1})
    assert np.array_equal(estimator.sums, before) and estimator.samples == 2


def test_the_state_does_not_grow_with_the_samples(tmp_path):
    estimator, sizes = Estimator(GRID, SHAPE), []
    for count in (2, 2, 50):
        estimator.add(two_gaussians, states(count))
        estimator.save(tmp_path / "sums.safetensors")
        held = sum(value.nbytes for value in vars(estimator).values() if isinstance(value, np.ndarray))
        sizes.append((held, (tmp_path / "sums.safetensors").stat().st_size // 100))
    assert len(set(sizes)) == 1 and sizes[0][0] == 8 * len(GRID) * (1 + len(SUMS) * math.prod(SHAPE))


def test_half_precision_models_can_be_measured():
    estimator = Estimator(GRID[::4], (2, 1, 1))
    estimator.add(lambda x, sigma: two_gaussians(x, sigma).half().float(), states(400).float())
    l, _, _ = expected_statistics(pool=True)  # noqa: E741
    assert np.abs(estimator.statistics(1).l - l[::4]).max() < 0.03


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lambdas": np.arange(2.0)}, "lambdas must be at least 3"),
        ({"lambdas": np.array([1.0, 0.0, -1.0])}, "lambdas must rise"),
        ({"shape": (4, 4)}, "shape must be"),
        ({"shape": (4, 0, 4)}, "shape must be"),
        ({"probe_step": 0.0}, "probe_step must be from"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(StatisticsError, match=words):
        Estimator(**{"lambdas": GRID, "shape": SHAPE, **arguments})


def test_bad_batches_and_too_few_samples_are_refused():
    estimator = Estimator(GRID, SHAPE)
    for shape in ((2, 2, 3), (2, 2, 3, 3), (0, *SHAPE)):
        with pytest.raises(StatisticsError, match="x must have shape"):
            estimator.add(two_gaussians, torch.ones(shape))
    with pytest.raises(StatisticsError, match="the model's output must be finite"):
        estimator.add(lambda x, sigma: x * math.nan, states(2))
    assert not estimator.sums.any()
    with pytest.raises(StatisticsError, match="samples must be at least 2"):
        estimator.statistics()
    estimator.add(two_gaussians, states(2))
    for smoothing in (0, 2, 2.5, -1):
        with pytest.raises(StatisticsError, match="smoothing must be an odd whole number"):
            estimator.statistics(smoothing)


@pytest.mark.parametrize(
    ("changes", "metadata", "words"),
    [
        ({"sums": np.ones((9, 3, 2, 2))}, {}, "sums must be 9 float64 per grid point"),
        ({"sums": np.ones((9, 4, 1, 2, 2))}, {}, "sums must be 9 float64 per grid point"),
        ({"sums": np.ones((9, 3, 1, 2, 2), np.float32)}, {}, "sums must be 9 float64"),
        ({"sums": np.full((9, 3, 1, 2, 2), np.inf)}, {}, "sums must be finite"),
        ({}, {"samples": -1}, "samples must be a whole number"),
        ({}, {"seed": "0"}, "seed must be a whole number"),
        ({}, {"probe_step": 5}, "probe_step must be a number"),
        ({}, {"exact": 1}, "exact must be true or false"),
        ({}, {"format": "hpsampler-statistics"}, "format must be"),
    ],
)
def test_a_bad_file_of_sums_is_refused(tmp_path, changes, metadata, words):
    tensors = {"lambdas": np.arange(3.0), "sums": np.ones((9, 3, 1, 2, 2)), **changes}
    facts = {"format": "hpsampler-statistics-sums", "samples": 4, "seed": 0, "probe_step": 0.01, "exact": False}
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata_of(**{**facts, **metadata}))
    with pytest.raises(StatisticsError, match=f"bad.safetensors: .*{words}"):
        Estimator.load(path)


# ---- what a file may unfold to ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((36_000_000,), "l must have at most 4096 grid points"),
        ((5000, 1, 1, 1), "l must have at most 4096 grid points"),
        ((11, 65, 8, 8), "l must have at most 64 channels"),
        ((11, 1, 1025, 8), "l must have at most 1024 rows"),
        ((11, 1, 8, 1025), "l must have at most 1024 columns"),
        ((11, 48), "l must have shape"),
        ((251, 4, 150, 150), "l unfolds to .* times its size in the file"),
    ],
)
def test_an_archive_is_not_unfolded_to_more_than_a_model_can_use(tmp_path, monkeypatch, noise, shape, words):
    """Zeros of 290 MB take 290 kB in an archive."""
    folder = tmp_path / "7.5_10_16"
    folder.mkdir()
    np.savez_compressed(folder / "l.npz", l=np.zeros(shape))
    np.savez_compressed(folder / "sb.npz", s=np.zeros((11, 1, 1, 1)), b=np.zeros((11, 1, 1, 1)))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was unfolded"))
    with pytest.raises(StatisticsError, match=words):
        load_published(folder, noise)


def test_measured_statistics_may_be_compressed(tmp_path, noise):
    folder, values = tmp_path / "mine", np.random.default_rng(0).standard_normal((251, 4, 64, 64)).clip(-1, 1)
    folder.mkdir()
    np.savez_compressed(folder / "l.npz", l=values)
    np.savez_compressed(folder / "sb.npz", s=values, b=values)
    np.testing.assert_array_equal(load_published(folder, noise).l, values)


def test_the_trajectories_that_are_measured_are_those_of_dpmpp_2m():
    """First-order ones would be off by much more than the statistics, which are for where sampling passes."""
    estimator = Estimator(np.linspace(-2.6, 2.0, 12), (4, 1, 1))
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * estimator.sigmas[0]
    measured, sampled = [], []

    def model(seen):
        def denoise(x, sigma, **_):
            seen.append(x.clone())
            return torch.tanh(x) / (1 + sigma.view(-1, 1, 1, 1))

        return denoise

    estimator.add(model(measured), x)
    sample_dpmpp_2m(model(sampled), x, torch.tensor([*estimator.sigmas, 0.0], dtype=torch.float64))
    # every second call is the probe beside the trajectory
    torch.testing.assert_close(torch.stack(measured[::2]), torch.stack(sampled), rtol=1e-9, atol=1e-9)


def test_every_batch_is_probed_in_directions_of_its_own():
    """The same ones again would add pictures, but no directions; the same job again has the same ones."""

    def signs_of(batches):
        estimator = Estimator(np.linspace(-2.6, 2.0, 5), (4, 1, 1), seed=3)
        x, found = torch.ones(2, 4, 4, 4, dtype=torch.float64), []
        for _ in range(batches):
            seen = []
            estimator.add(lambda x, sigma, seen=seen: seen.append(x.clone()) or x * 0.5, x)
            found.append(torch.stack([(probe - point).sign() for point, probe in zip(seen[::2], seen[1::2])]))
        return found

    first, second = signs_of(2)
    assert set(first.unique().tolist()) == {-1.0, 1.0} and 0.3 < float((first == second).double().mean()) < 0.7
    assert all(torch.equal(*pair) for pair in zip((first, second), signs_of(2)))
