"""Progress of training: a bar or lines, and records in log.jsonl and on the boards."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from asrtool.log import JsonLines, logger
from asrtool.trainer.boards import Boards
from asrtool.trainer.step import GIGABYTE, PARTS, StepResult

LINE_SECONDS, BAR_SECONDS = 10.0, 1.0  # between two lines, or two updates of the bar's text
AUDIO = "audio_seconds_per_second"
SLOW_DATA = 0.1  # share of time spent waiting for data from which on advice is printed


class Window:
    """Sums over the steps since the last line or record."""

    def __init__(self) -> None:
        self.steps = self.utterances = 0
        self.frames = self.norm = 0.0
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.losses: dict[str, float] = {}
        self.started = time.monotonic()

    def add(self, result: StepResult, seconds: Mapping[str, float]) -> None:
        self.steps += 1
        self.frames += result.frames
        for part, value in seconds.items():
            self.seconds[part] += value
        # the losses of a non-finite step would spoil the means; its time counts
        if result.bad is not None:
            return
        self.utterances += result.utterances
        self.norm = result.norm
        for name, value in {"loss": result.loss, **result.terms}.items():
            self.losses[name] = self.losses.get(name, 0.0) + value * result.utterances

    def values(self, frame_seconds: float | None) -> dict[str, float]:
        """Losses per utterance, the last gradient norm, audio seconds (or tokens) per second, and
        the share of time spent waiting for data.
        """
        elapsed = max(time.monotonic() - self.started, 1e-9)
        speed = self.frames / elapsed
        return {
            **{name: total / max(1, self.utterances) for name, total in self.losses.items()},
            "norm": self.norm,
            **(
                {"tokens_per_second": speed}
                if frame_seconds is None
                else {AUDIO: speed * frame_seconds}
            ),
            "data_wait": min(1.0, self.seconds["data"] / elapsed),
        }

    def split(self) -> dict[str, float]:
        """Seconds per step by part; `other` is between steps: validation, saving, logging."""
        elapsed = time.monotonic() - self.started
        parts = {**self.seconds, "other": max(0.0, elapsed - sum(self.seconds.values()))}
        return {part: round(value / max(1, self.steps), 6) for part, value in parts.items()}


class Progress:
    """Progress of one phase on rank 0. On other ranks `log` is None, and nothing is printed."""

    def __init__(
        self,
        phase: str,
        log: JsonLines | None,
        *,
        planned: int,
        start: int,
        every: int,
        frame_seconds: float | None,
        boards: Boards | None = None,
    ) -> None:
        self._phase, self._log, self._planned, self._every = phase, log, planned, every
        self._boards = boards or Boards()
        self._frame_seconds = frame_seconds
        self._line, self._record = Window(), Window()
        self._began, self._first = time.monotonic(), start
        self._advised = False
        self._bar = None
        if log is not None and sys.stderr.isatty():
            shape = {"dynamic_ncols": True, "bar_format": "{l_bar}{bar:12}{r_bar}"}
            self._bar = tqdm(total=planned, initial=start, desc=phase, unit="step", **shape)
        self._redirect = logging_redirect_tqdm([logger])
        if self._bar is not None:
            self._redirect.__enter__()

    def step(
        self, epoch: int, step: int, rate: float, result: StepResult, seconds: Mapping[str, float]
    ) -> None:
        """Count update number `step` of epoch `epoch` (from 1); `seconds`: time by part."""
        if self._log is None:
            return
        for window in (self._line, self._record):
            window.add(result, seconds)
        if self._bar is not None:
            self._bar.update()
        if step % self._every == 0:
            self._write(epoch, step, rate)
        if time.monotonic() - self._line.started >= (
            BAR_SECONDS if self._bar is not None else LINE_SECONDS
        ):
            self._say(epoch, step, rate, self._line.values(self._frame_seconds))
            self._line = Window()

    def _write(self, epoch: int, step: int, rate: float) -> None:
        """Write the record of the last steps to log.jsonl and the boards."""
        values = {"rate": rate, **self._record.values(self._frame_seconds), **memory()}
        split = self._record.split()
        self._log.write(
            event="step", phase=self._phase, epoch=epoch, step=step, **values, seconds=split
        )
        self._boards.write(step, values, prefix="train/")
        self._boards.write(step, split, prefix="seconds/")
        self._advise(values["data_wait"])
        self._record = Window()

    def event(self, event: str, **facts: object) -> None:
        """Write a record to log.jsonl."""
        if self._log is not None:
            self._log.write(event=event, phase=self._phase, **facts)
            if event == "valid":
                values = {name: facts[name] for name in facts if name.startswith("valid/")}
                self._boards.write(facts["step"], values)

    def close(self) -> None:
        self._boards.close()
        if self._bar is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)

    def _say(self, epoch: int, step: int, rate: float, values: Mapping[str, float]) -> None:
        losses = {name: value for name, value in values.items() if name in self._line.losses}
        parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "loss")
        text = f"epoch {epoch} loss {losses.get('loss', float('nan')):.3f}" + (
            f" ({parts})" if len(losses) > 2 else ""
        )
        text += f" lr {rate:.2e} norm {values['norm']:.2f}"
        speed = (
            f"audio {values[AUDIO]:.0f} s/s"
            if AUDIO in values
            else f"{values['tokens_per_second']:.0f} tokens/s"
        )
        text += f" {speed} data {values['data_wait']:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        left = (
            (time.monotonic() - self._began)
            / max(1, step - self._first)
            * max(0, self._planned - step)
        )
        logger.info(
            "%s step %d/%d %s left %s",
            self._phase,
            step,
            self._planned,
            text,
            timedelta(seconds=round(left)),
        )

    def _advise(self, share: float) -> None:
        if share > SLOW_DATA and not self._advised:
            self._advised = True
            logger.info(
                "%.0f %% of the time is spent waiting for data; raise data.workers, or use "
                "stored features",
                100 * share,
            )


def memory() -> dict[str, float]:
    """Peak GPU memory in gigabytes since the last call; nothing on a CPU."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    peak = torch.cuda.max_memory_allocated() / GIGABYTE
    torch.cuda.reset_peak_memory_stats()
    return {"gpu_gb": round(peak, 3)}


def parameter_table(model: nn.Module) -> str:
    """Table of trainable and frozen parameters by part of the model."""
    rows = []
    for name, part in [*model.named_children(), ("total", model)]:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
        rows.append((name, sum(n for n, on in sizes if on), sum(n for n, on in sizes if not on)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'parameters':{max(width, 10)}} {'trainable':>13} {'frozen':>13}"]
    return "\n".join(
        lines + [f"{name:{max(width, 10)}} {on:13,} {off:13,}" for name, on, off in rows]
    )
