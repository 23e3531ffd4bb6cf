"""The number format of a computation, in training and in decoding."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asrtool.errors import UserError
from asrtool.log import logger

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(precision: str, device: torch.device, key: str = "trainer.precision") -> str:
    """The precision for a device: `auto` is bf16 if the hardware multiplies it, else float32.

    Raises `UserError` for a precision that the device does not support. key: of the config.
    """
    if precision == "auto":
        return "bf16" if multiplies_bf16(device) else "float32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"{key}: fp16 needs a GPU; use auto, float32 or bf16 on a CPU")
    if precision == "bf16" and device.type == "cuda" and not multiplies_bf16(device):
        raise UserError(f"{key}: this GPU does not support bf16; use auto, fp16 or float32")
    return precision


def tell(asked: str, chosen: str, device: torch.device, key: str = "trainer.precision") -> None:
    """Log what `auto` is, and warn of a slow choice."""
    if asked == "auto":
        logger.info("%s: auto is %s on this device", key, chosen)
    elif asked == "bf16" and not multiplies_bf16(device):
        logger.warning(
            "%s: this device has no instructions for bf16, which makes it many times slower; set "
            "it to auto",
            key,
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context that computes in a precision of `DTYPES` what can be; weights stay float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; if not, it is slower than float32.

    On x86 torch reports bfloat16 support from AVX-512 on, although only AVX512_BF16 and AMX
    multiply it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """Within the block, a GPU may multiply float32 in TF32: factors with 10 bits of mantissa, as
    fp16 has, and sums in float32. Other devices are left alone.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
