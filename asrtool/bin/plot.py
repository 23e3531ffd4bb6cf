"""Plot a training from its log: losses, error rates, learning rate, gradient norm, time, speed.

asrtool plot exp/train_conformer
asrtool plot keyframes exp/train_keyframe --data dump/fbank80/test       the frames that are kept
asrtool plot echo exp/train_echotune_100h --data dump/waveform/dev       gates and windows
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrtool.log import logger, set_up
from asrtool.plots import pyplot, save
from asrtool.trainer import curves
from asrtool.trainer.curves import Curve, Curves

PICTURES = ("echo", "keyframes")  # modules of asrtool.plots


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in PICTURES:
        importlib.import_module(f"asrtool.plots.{arguments[0]}").main(arguments[1:])
        return
    options = argparse.ArgumentParser(
        prog="asrtool plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("exp", type=Path, help="experiment folder, finished or not")
    options.add_argument(
        "--out", type=Path, help="picture to write: .png, .pdf or .svg; default: <exp>/curves.png"
    )
    args = options.parse_args(arguments)
    set_up()
    out = args.out or args.exp / "curves.png"
    draw(curves.read(args.exp), out, title=str(args.exp))
    logger.info("wrote %s", out)


def draw(curves: Curves, out: Path, title: str) -> None:
    """Draw six panels over the steps and write them atomically."""
    plt = pyplot()
    figure, panels = plt.subplots(3, 2, figsize=(12, 11), layout="constrained", sharex=True)
    figure.suptitle(title)
    losses, rates, learning_rate, norm, time, speed = panels.flat
    lines(losses, "loss per utterance", curves.losses)
    lines(rates, "error rate, %", {name: percent(curve) for name, curve in curves.rates.items()})
    rates.set_ylim(bottom=0)
    lines(learning_rate, "learning rate", {"": curves.learning_rate})
    lines(norm, "norm of the gradient, before clipping", {"": curves.norm})
    shares(time, "where the time goes, %", curves.time)
    lines(speed, "seconds of audio a second", {"": curves.speed})
    for panel in panels.flat:
        for name, start in curves.phases.items():
            if len(curves.phases) > 1:
                panel.axvline(start, color="gray", linewidth=0.8, linestyle=":")
                panel.text(
                    start,
                    1.0,
                    f" {name}",
                    transform=panel.get_xaxis_transform(),
                    fontsize=7,
                    va="bottom",
                )
    for panel in panels[-1]:
        panel.set_xlabel("step")
    save(figure, out)


def lines(panel: Any, title: str, named: dict[str, Curve]) -> None:
    """Draw curves; validation, with few points, has markers. Equal curves, such as a loss and its
    only term, are drawn once."""
    panel.set_title(title, fontsize=10, loc="left")
    drawn: list[Curve] = []
    for name, curve in named.items():
        if curve in drawn:
            continue
        drawn.append(curve)
        style = (
            {"marker": "o", "markersize": 3, "linestyle": "--"} if name.startswith("valid/") else {}
        )
        panel.plot(curve.steps, curve.values, linewidth=1.2, label=name or None, **style)
    if any(named):
        panel.legend(fontsize=8)
    panel.grid(alpha=0.3)


def shares(panel: Any, title: str, parts: dict[str, Curve]) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    if parts:
        scaled = [percent(curve) for curve in parts.values()]
        panel.stackplot(
            scaled[0].steps, *(curve.values for curve in scaled), labels=list(parts), alpha=0.8
        )
        panel.legend(fontsize=8, loc="lower right")
    panel.set_ylim(0, 100)


def percent(curve: Curve) -> Curve:
    return Curve(curve.steps, [100 * value for value in curve.values])


if __name__ == "__main__":
    main()
