"""The number format of a training's computation."""

from __future__ import annotations

import platform

import torch

from asrtool.errors import UserError

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(precision: str, device: torch.device) -> str:
    """The precision for a device: `auto` is bf16 if the hardware multiplies it, else float32.

    Raises `UserError` for a precision that the device does not support.
    """
    if precision == "auto":
        return "bf16" if multiplies_bf16(device) else "float32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("trainer.precision: fp16 needs a GPU; use auto, float32 or bf16 on a CPU")
    if precision == "bf16" and device.type == "cuda" and not multiplies_bf16(device):
        raise UserError(
            "trainer.precision: this GPU does not support bf16; use auto, fp16 or float32"
        )
    return precision


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
