"""NPNet's weights: reading, checking and labelling them, and converting a published file.

Parameters have the names of the published files (those of timm 0.9 in the Swin). A published ``.pth`` is converted
once, with ``python -m hpsampler.npnet convert in.pth out.safetensors``; only safetensors files are loaded.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Optional

import torch

from ..checks import abbreviated
from ..files import part_beside, sweep
from .npnet import CHANNELS, SIZE, TOKENS, GoldenNoiseError, NPNet, models_of_width

__all__ = ["convert", "load_npnet", "weights_label"]

FORMAT, VERSION = "hpsampler-npnet", "1"

MAX_BYTES = 2**30
"""Largest size of a file, and of an unpacked archive, that is read; the published ones have about 120 MB."""

UNUSED = (
    ("unet_svd.bn.weight", (2 * SIZE,)),
    ("unet_svd.bn.bias", (2 * SIZE,)),
    ("unet_svd.bn.running_mean", (2 * SIZE,)),
    ("unet_svd.bn.running_var", (2 * SIZE,)),
    ("unet_svd.bn.num_batches_tracked", ()),
    ("unet_embedding.swin.head.fc.weight", (1000, 768)),
    ("unet_embedding.swin.head.fc.bias", (1000,)),
)
"""Tensors in the published files that are never used: a normalisation that is not called, and the Swin's classifier."""

SECTIONS = {"unet_svd": "unet_svd", "unet_embedding": "unet_embedding", "embeeding": "text_embedding"}
"""The dictionaries in the published files (with the spelling error), and the network's names for them."""


def load_npnet(path: str | Path) -> NPNet:
    """Load an NPNet from a safetensors file that :func:`convert` wrote, or one with the same names and no metadata.

    The file holds ``unet_svd.*``, ``unet_embedding.*``, ``text_embedding.*``, ``alpha`` and ``beta``.

    Raises:
        GoldenNoiseError: the file is missing, is not a safetensors file, is cut short, or holds other names, shapes or
            values.
    """
    from safetensors import SafetensorError, safe_open  # not every host has it

    path = Path(path)
    with _open(path) as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        raise GoldenNoiseError(
            f"{path.name} is a PyTorch file; convert it once: "
            f"python -m hpsampler.npnet convert {path.name} {path.stem}.safetensors"
        )
    if not _is_safetensors(start):
        raise _not_weights(path, start)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format", "pt") not in (FORMAT, "pt"):
                raise GoldenNoiseError(f"{path.name} is not an NPNet: its format is {abbreviated(metadata['format'])}")
            if metadata.get("format") == FORMAT and metadata.get("version") != VERSION:
                raise GoldenNoiseError(
                    f"{path.name}: version must be {VERSION}, got {abbreviated(metadata.get('version'))}; "
                    "update HP Sampler to read it"
                )
            # check all names and shapes before the first tensor is read
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            width = _width_of(shapes, path.name)
            _check_model(metadata.get("model"), width, path.name)
            # initialising the weights, which are overwritten, must not advance the host's random numbers
            with torch.random.fork_rng(devices=[]):
                network = NPNet(width, metadata.get("model"))
            tensors = {name: file.get_tensor(name) for name in _check_shapes(network, shapes, path.name)}
    except (SafetensorError, OSError) as error:
        raise GoldenNoiseError(f"{path.name} is damaged or cut short: {str(error)[:80]}; download it again") from None
    network.load_state_dict(_check_values(tensors, path.name))
    return network.requires_grad_(False).eval()


def weights_label(name: str, network: NPNet) -> str:
    """The label by which a picture names weights: ``my weights 1a2b3c4d``, with a hash of their smaller tensors."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        if tensor.numel() <= 4096:
            digest.update(tensor.double().cpu().numpy().tobytes())
    return f"{name} {digest.hexdigest()[:8]}"


def convert(path_pth: str | Path, path_out: str | Path, model: Optional[str] = None) -> str:
    """Convert a published ``.pth`` to safetensors, checking every name, shape and value; no code in it is executed.

    A ``.pth`` is an archive with a pickle that builds its tensors. After a check of the archive's table of contents it
    is read by PyTorch's restricted unpickler, which accepts tensors only. Tensors that NPNet does not use are left out.

    Args:
        path_pth: a file with one dictionary of ``unet_svd``, ``unet_embedding``, ``embeeding`` (with that spelling),
            ``alpha`` and ``beta``.
        path_out: must end in ``.safetensors``; an existing file is replaced only when the new one is complete.
        model: one of ``PUBLISHED``. Without it, Hunyuan-DiT is recognised by its width; the other two have equal shapes
            and are distinguished by the file's name (``dreamshaper...`` or any other). For any other width the model
            is unknown.

    Returns:
        The model's name, which is also in the new file's metadata; empty where it is unknown.

    Raises:
        GoldenNoiseError: the file is missing, is not such a file, is cut short, holds more than tensors, or holds other
            names, shapes or values; or the new file cannot be written.
    """
    path_pth, path_out = Path(path_pth), Path(path_out)
    if path_out.suffix.lower() != ".safetensors":
        raise GoldenNoiseError(f"the new file's name must end in .safetensors, got {abbreviated(path_out.name)}")
    with _open(path_pth) as file:
        tensors = _flattened(_read_archive(file, path_pth), path_pth.name)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = _width_of(shapes, path_pth.name)
    if model is None:
        candidates = models_of_width(width) or [""]
        model = candidates[-1 if "dreamshaper" in path_pth.name.lower() else 0]
    _check_model(model, width, path_pth.name)
    used_names = _check_shapes(NPNet(width), shapes, path_pth.name)
    tensors = _check_values({name: tensors[name] for name in used_names}, path_pth.name)
    _write(path_out, tensors, {"format": FORMAT, "version": VERSION, "model": model})
    return model


def _open(path: Path) -> BinaryIO:
    """Raises GoldenNoiseError: it is not a file, is too large, or cannot be read."""
    try:
        if not path.is_file() and path.exists():
            raise GoldenNoiseError(f"{path.name} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise GoldenNoiseError(f"{path.name} is not an NPNet: the file must be at most {MAX_BYTES >> 20} MB")
        return path.open("rb")
    except OSError as error:
        raise GoldenNoiseError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with eight bytes that give the header's length, and then the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_BYTES


def _not_weights(path: Path, start: bytes) -> GoldenNoiseError:
    """An error that says what a file that is not an archive seems to be, as failed downloads often are web pages."""
    text = start.lstrip().lower()
    if not start:
        problem = "is empty; download it again"
    elif text.startswith((b"<!doctype", b"<html")):
        problem = "is a web page, not weights; download it again"
    elif text.startswith(b"version https://git-lfs"):
        problem = "is only a git-lfs pointer to the weights; download the file itself"
    elif _is_safetensors(start):
        problem = "is a safetensors file already"
    elif start[:1] == b"\x80":
        problem = "is a bare pickle, which may hold any program; it was not opened"
    else:
        problem = "is not a known format of weights"
    return GoldenNoiseError(f"{path.name} {problem}")


def _read_archive(file: BinaryIO, path: Path) -> Any:
    """The object that ``torch.save`` wrote, after a check of the archive's contents."""
    start = file.read(64)
    if start[:4] != b"PK\x03\x04":
        # this refuses PyTorch's older formats too, whose readers have had vulnerabilities
        raise _not_weights(path, start)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename.rpartition("/")[2] for entry in entries]
            if "constants.pkl" in names:
                raise GoldenNoiseError(f"{path.name} is a TorchScript program, not weights; it was not opened")
            if names.count("data.pkl") != 1:
                raise GoldenNoiseError(f"{path.name} is an archive, but not one that PyTorch wrote")
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MAX_BYTES:
                raise GoldenNoiseError(f"{path.name} is not an NPNet: it unpacks to more than {MAX_BYTES >> 20} MB")
            # PyTorch stores tensors as they are, so an archive that grows is none of its own
            if unpacked > path.stat().st_size:
                raise GoldenNoiseError(
                    f"{path.name} is not an NPNet: it unpacks to {unpacked:,} bytes, more than it has"
                )
            damaged = archive.testzip()
    except GoldenNoiseError:
        raise
    except Exception as error:  # damaged archives raise many kinds besides BadZipFile
        raise _cut_short(path, error) from None
    if damaged is not None:
        raise _cut_short(path, damaged)
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file can make the reader raise anything
        if type(error).__name__ == "UnpicklingError":
            raise GoldenNoiseError(
                f"{path.name} holds something other than tensors, which may be a program; it was not executed"
            ) from None
        raise _cut_short(path, error) from None


def _cut_short(path: Path, reason: object) -> GoldenNoiseError:
    return GoldenNoiseError(f"{path.name} is damaged or cut short ({str(reason)[:80]}); download it again")


def _flattened(data: Any, name: str) -> dict[str, torch.Tensor]:
    """The published dictionary of dictionaries as one dictionary with the network's names."""
    if not isinstance(data, dict) or set(data) != {*SECTIONS, "alpha", "beta"}:
        content = _listed(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise GoldenNoiseError(
            f"{name} is not an NPNet: it must hold unet_svd, unet_embedding, embeeding, alpha and beta; "
            f"it holds {content}"
        )
    tensors: dict[str, Any] = {"alpha": data["alpha"], "beta": data["beta"]}
    for section, prefix in SECTIONS.items():
        if not isinstance(data[section], dict):
            raise GoldenNoiseError(f"{name} is not an NPNet: {section} must be a dictionary of tensors")
        tensors.update({f"{prefix}.{key}": value for key, value in data[section].items()})
    for key, value in tensors.items():
        if not _is_plain(value):
            raise GoldenNoiseError(f"{name} is not an NPNet: {abbreviated(key)} must be a plain tensor")
    for key in ("alpha", "beta"):
        tensors[key] = tensors[key].reshape(1) if tensors[key].numel() == 1 else tensors[key]
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor with data, not a sparse, quantised, nested or meta tensor, which can be read too."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested)
    )


def _width_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    shape = shapes.get("text_embedding.linear.weight")
    if shape is None:
        raise GoldenNoiseError(
            f"{name} is not an NPNet: it has no text_embedding.linear.weight; it has {_listed(shapes)}"
        )
    if len(shape) != 2 or shape[0] != 2 * CHANNELS or shape[1] % TOKENS or not shape[1]:
        raise GoldenNoiseError(f"{name}: text_embedding.linear.weight has shape {shape}, which no NPNet has")
    return shape[1] // TOKENS


def _check_shapes(network: NPNet, shapes: Mapping[str, tuple[int, ...]], name: str) -> list[str]:
    """Check all names and shapes; returns the names that the network needs."""
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    known = {**needed, **dict(UNUSED)}
    if "unet_embedding.swin.layers.0.downsample.norm.weight" in shapes:
        raise GoldenNoiseError(f"{name} was made with timm before 0.9, with which NPNet cannot run")
    missing = [key for key in needed if key not in shapes]
    if missing:
        raise GoldenNoiseError(f"{name} lacks {_listed(missing)}")
    surplus = [key for key in shapes if key not in known]
    if surplus:
        raise GoldenNoiseError(f"{name} holds tensors that no NPNet has: {_listed(surplus)}")
    for key, shape in shapes.items():
        if shape != known[key]:
            raise GoldenNoiseError(f"{name}: {key} must have shape {known[key]}, got {shape}")
    return list(needed)


def _check_values(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors as contiguous float32 copies.

    Raises:
        GoldenNoiseError: one is not floating point, or not finite.
    """
    checked = {}
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise GoldenNoiseError(f"{name}: {key} must be floating point, got {value.dtype}")
        checked[key] = value.detach().to(torch.float32, copy=True).contiguous()
        if not checked[key].isfinite().all():
            raise GoldenNoiseError(f"{name}: {key} must be finite")
    return checked


def _check_model(model: Optional[str], width: int, name: str) -> None:
    if model and model not in models_of_width(width):
        known = " or ".join(models_of_width(width)) or "no known model"
        raise GoldenNoiseError(f"{name} has the shape of the NPNet for {known}, not for {abbreviated(model)}")


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(abbreviated(name) for name in names[:most]) or "nothing") + more


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write to a temporary file first, so that an interrupted write leaves an existing file as it was."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    sweep(path.parent)
    try:
        with part_beside(path) as part:
            save_file(tensors, str(part), metadata)
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GoldenNoiseError(f"{path.name} cannot be written: {reason[:80]}") from None
