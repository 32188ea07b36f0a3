"""Choice of device and precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from FewShotSegLib.errors import InputError

logger = logging.getLogger(__name__)


def bfloat16_pays(device: torch.device | str = "cpu") -> bool:
    """Whether `device` multiplies bfloat16 natively. Without such instructions it is slower than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_multiplies_bfloat16()


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check is not None and check())


@contextlib.contextmanager
def encoding_precision(device: torch.device | str, *, bfloat16: bool | None = None) -> Iterator[torch.dtype]:
    """Encode in bfloat16 inside the block where that is faster; yields the dtype used, for the record of the run.

    `bfloat16` None means `bfloat16_pays`; False keeps float32. Meant for inference; outputs come in that dtype.
    """
    chosen = bfloat16_pays(device) if bfloat16 is None else bfloat16
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=chosen):
        yield torch.bfloat16 if chosen else torch.float32


def choose_device(wanted: str, say: Callable[[str], None]) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; the result of "auto" is reported through `say`."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError("No GPU that PyTorch can use was found; choose --device auto or cpu.")
    if wanted == "auto" and not available:
        say("Working on the CPU: no GPU that PyTorch can use was found.")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = (
        True  # convolutions do by default; 10 bits suffice for what stays in float32
    )
    return torch.device("cuda")


def training_precision(device: torch.device) -> torch.dtype | None:
    """Half precision for promptable networks where it is natively supported; elsewhere it only loses accuracy."""
    if bfloat16_pays(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else None


# On patches smaller than this, in voxels, there is little gain, and where a network ends at 2 x 2 voxels PyTorch's CPU
# gradients of bfloat16 convolutions were seen to be NaN.
_NARROWEST = 80


def patch_precision(device: torch.device | str, patch: Sequence[int] | None = None) -> torch.dtype | None:
    """bfloat16 for 3-D networks where it is faster; in training, where gradients matter, only on sufficiently large
    patches (d, h, w).
    """
    large = patch is None or min(patch[1:]) >= _NARROWEST
    return torch.bfloat16 if large and bfloat16_pays(torch.device(device)) else None


Kernel = Callable[..., torch.Tensor]


def working_kernel(load: Callable[[], Kernel], attempt: Callable[[Kernel], object], what: str) -> Kernel | None:
    """The Triton kernel that `load` imports if it compiles and runs here, forward and backward, which `attempt` tries;
    None otherwise, and why is logged.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            kernel = load()
            attempt(kernel)
    except ImportError:  # there is no Triton
        return None
    except Exception as error:  # no compiler, no headers, an old GPU: of many kinds
        logger.info("%s runs without Triton: %s", what, error)
        return None
    return kernel
