"""On what machine something was measured."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import torch

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """A machine in words.

    Attributes:
        device: the GPU's name, or what CPU there is.
        driver: NVIDIA's; empty where there is none.
        cuda: version that torch was built for; empty for a build without it.
        date: the day, UTC.
        gpu: whether there is a GPU at all.
        small: whether sizes were cut down to those of a test.
    """

    device: str
    driver: str
    torch_version: str
    cuda: str
    date: str
    gpu: bool
    small: bool

    @classmethod
    def here(cls, device: torch.device, small: bool) -> Machine:
        gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if gpu else f"CPU ({platform.machine()}), one thread"
        today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        return cls(name, _driver() if gpu else "", torch.__version__, torch.version.cuda or "", today, gpu, small)

    @property
    def folder(self) -> str:
        """A folder's name for what is measured there; another day's results belong to the same."""
        words = (self.device, f"torch {self.torch_version}", "small" if self.small else "")
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        words = [self.device, f"torch {self.torch_version}"]
        words += [f"CUDA {self.cuda}"] if self.cuda else []
        words += [f"driver {self.driver}"] if self.driver else []
        return ", ".join([*words, self.date])


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.splitlines()[0].strip() if found.strip() else ""
