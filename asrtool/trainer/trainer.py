"""The training loop of one phase: resume, step, validate, save, stop.

    restore the newest intact checkpoint; run the longest batch once, to check that it fits
    until the planned steps or epochs are done (`Trainer._loop`):
        validate and save when due
        read the data of a step
        forward, losses, backward, clip, update (asrtool/trainer/step.py)
        log; save when the last checkpoint is old; stop on a signal
    average the best checkpoints

Random numbers, learning rate and data order are functions of the step. So a run that was
interrupted anywhere, even in a validation, ends with the same weights after a restart.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.log import JsonLines, logger
from asrtool.registry import suggest
from asrtool.system.signals import StopSignals
from asrtool.trainer import averaging, checkpoint, parallel, records
from asrtool.trainer.averaging import Ema
from asrtool.trainer.boards import open_boards
from asrtool.trainer.capacity.feeding import Feeding, cores
from asrtool.trainer.capacity.memory import recompute
from asrtool.trainer.config import Steps, TrainerConfig, TrainState
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import OptimConfig
from asrtool.trainer.precision import choose, tell, tf32
from asrtool.trainer.progress import Progress, parameter_table
from asrtool.trainer.step import StepBatches, Stepper, StepResult
from asrtool.trainer.troubles import Troubles
from asrtool.trainer.validation import Rates, is_rate, measure, names, observed, rehearse, unscored
from asrtool.types import Batch, Trainable


class Trainer:
    """Trains `model` in `folder`. `valid`: this rank's share of the validation batches."""

    def __init__(
        self,
        config: TrainerConfig,
        optim: OptimConfig,
        model: Trainable,
        objective: Objective,
        train: Steps,
        valid: Iterable[Batch],
        folder: Path,
        *,
        rates: Rates | None = None,
        seed: int = 0,
        # seconds per input frame or sample, for the reported speed; None: inputs are tokens
        frame_seconds: float | None = 0.01,
        device: torch.device | None = None,
        logs: Path | None = None,  # folder of log.jsonl and bad_batches.jsonl; None: `folder`
    ) -> None:
        self.config, self.train, self.valid, self.rates = config, train, valid, rates
        self.folder, self.logs = Path(folder), Path(logs or folder)
        self.device = device or distributed.device()
        self.state = TrainState()
        self._check(objective)
        if train.num_steps(0) == 0:
            raise UserError(
                "the training set is empty: no utterance is between data.min_seconds and "
                "data.max_seconds"
            )
        self.planned = config.steps or sum(train.num_steps(epoch) for epoch in range(config.epochs))
        # rank 0 decides for all ranks, because their hardware may differ
        self.precision = distributed.broadcast_object(choose(config.precision, self.device))
        if config.activation_checkpointing:
            recompute(model)
        self.stepper = Stepper(
            optim,
            model,
            objective,
            planned=self.planned,
            precision=self.precision,
            device=self.device,
            seed=seed,
            shared=config.parallel,
            out_of_memory=config.out_of_memory,
        )
        self.model = self.stepper.model
        if config.compile:
            parallel.compile_layers(self.model)
        self._ema = Ema(self.model, config.ema) if config.ema is not None else None
        self._frame_seconds = frame_seconds
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._troubles = Troubles(self.folder.name, self.logs, config.nonfinite_limit)

    def _check(self, objective: Objective) -> None:
        config = self.config
        check_metric(config.best, objective.validated, self.rates)
        term = config.gradient_cosine
        if term is not None and term not in objective.losses:
            raise UserError(
                "trainer.gradient_cosine: there is no loss "
                f"'{term}'{suggest(term, objective.losses)}"
            )
        if config.parallel != "ddp" and distributed.world_size() == 1:
            logger.info("trainer.parallel: %s has no effect in a single process", config.parallel)

    # -- the loop --------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or until a signal to stop; returns 0 or the number of the signal."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        main = distributed.is_main()
        log = JsonLines(self.logs / "log.jsonl") if main else None
        boards = open_boards(self.config, self.folder, self.logs, self.state.step) if main else None
        self.progress = Progress(
            self.folder.name,
            log,
            planned=self.planned,
            start=self.state.step,
            every=self.config.log_every,
            frame_seconds=self._frame_seconds,
            boards=boards,
        )
        try:
            with StopSignals() as self._signals, tf32(self.config.tf32, self.device):
                return self._loop()
        finally:
            self.progress.close()
            if log is not None:
                log.close()

    def _loop(self) -> int:
        """The loop of steps, validations and checkpoints; returns as `run`."""
        self._announce()
        groups = iter(self.train.steps(self.state.epoch, self.state.batch))
        while True:
            # Validate, rank and save. This happens before the next step, not after the last one, so
            # that a run stopped during a validation resumes with that validation.
            if self._validation_due() and not self._validate():
                return self._leave(self._agreed_signal())
            if self._done():
                break

            # Data: the loader reads ahead, so time spent here means that the loader is too slow.
            started = time.monotonic()
            group = next(groups)
            waited = time.monotonic() - started

            # Forward, losses and backward of each micro-batch, then clip and update. Flags are
            # summed together with the losses, so all ranks agree on stopping and saving at no extra
            # cost.
            step = self.state.step + 1
            result = self.stepper.update(group, step, self._flags())
            self._count(group, result)
            # a skipped step left the weights as they were, so it must not count for the average
            if self._ema is not None and result.bad is None:
                self._ema.update(step)

            # Log.
            seconds = {"data": waited, **result.seconds}
            self.progress.step(group.epoch + 1, step, self.stepper.rate(step), result, seconds)
            if result.overflows:
                self._troubles.overflowed(
                    group.epoch + 1, step, result.overflows, self._frame_seconds, self.progress
                )
            if result.bad is not None:
                self._troubles.bad(group, result, self.state, self.stepper.rate(step))
            self._compare_gradients(group, step)
            if group.last:
                self._troubles.report(group.epoch + 1, self.progress)

            # Stop on a signal, or save because the last checkpoint is too old.
            interrupted, terminated, save_due = result.flags
            if interrupted or terminated:
                return self._leave(signal.SIGINT if interrupted else signal.SIGTERM)
            if save_due:
                self._save({})
        self._finish()
        return 0

    def _compare_gradients(self, group: StepBatches, step: int) -> None:
        """Log the cosine of a loss's gradient with that of the others, for a batch of rank 0."""
        term = self.config.gradient_cosine
        # the extra passes may draw random numbers: every step sets its own seed
        if (
            term is None
            or step % self.config.log_every
            or not distributed.is_main()
            or not group.batches
        ):
            return
        cosines = self.stepper.cosine(term, group.batches[0])
        if cosines is not None:
            self.progress.event("gradients", epoch=group.epoch + 1, step=step, term=term, **cosines)

    def _flags(self) -> list[float]:
        """This rank's flags, summed over ranks in each step: Ctrl-C, other signals, save due."""
        received = self._signals.received
        # clocks of machines differ: rank 0 alone decides when to save
        late = (
            distributed.is_main()
            and time.monotonic() - self._saved_at > self.config.save_every_seconds
        )
        return [received == signal.SIGINT, received not in (0, signal.SIGINT), late]

    def _agreed_signal(self) -> int:
        """The signal to stop with, agreed on by all ranks."""
        flags = distributed.all_sum(
            torch.tensor(self._flags(), dtype=torch.float64, device=self.device)
        ).tolist()
        return signal.SIGINT if flags[0] else signal.SIGTERM

    def _count(self, group: StepBatches, result: StepResult) -> None:
        """Advance the state by a step. A skipped step counts too: the data order goes on."""
        self._troubles.trained(group.count, result.skipped)
        bad = result.bad is not None
        self.state = replace(
            self.state,
            epoch=group.epoch + group.last,
            batch=0 if group.last else group.index + 1,
            step=self.state.step + 1,
            bad=self.state.bad + bad,
            bad_row=self.state.bad_row + 1 if bad else 0,
            overflows=self.state.overflows + len(result.overflows),
            too_large=self.stepper.bound.shapes,
        )

    def _done(self) -> bool:
        config, state = self.config, self.state
        if config.early_stop is not None and state.stale >= config.early_stop:
            return True
        return (
            state.step >= config.steps if config.steps is not None else state.epoch >= config.epochs
        )

    def _validation_due(self) -> bool:
        state, every = self.state, self.config.validate_every
        if state.step == state.validated:
            return False
        return self._done() or (state.batch == 0 if every is None else state.step % every == 0)

    # -- validation, saving, ending --------------------------------------------

    def _validate(self) -> bool:
        """Measure, rank and save; False, with nothing changed, if a signal came in between."""
        observed(self.model)  # clear statistics of other batches
        with self._averaged():
            measured = measure(
                self.stepper, self.valid, self.rates, lambda: bool(self._signals.received)
            )
        if measured is None:
            return False
        metrics, skipped = measured
        self._troubles.unscored(skipped)
        # NaN compares false with everything: inf makes sure that it never counts as better
        state, value = self.state, metrics[self.config.best]
        value = value if math.isfinite(value) else math.inf
        # the first validation is the best so far, even at inf: there must be a best checkpoint
        better = value < state.best or state.best_step == 0
        best = (
            {"best": value, "best_step": state.step, "stale": 0}
            if better
            else {"stale": state.stale + 1}
        )
        self.state = replace(state, validated=state.step, **best)
        text = ", ".join(
            f"{name} {value:.2%}" if is_rate(name, self.rates) else f"{name} {value:.4g}"
            for name, value in metrics.items()
        )
        logger.info(
            "%s step %d: %s%s",
            self.folder.name,
            state.step,
            text,
            " (the best so far)" if better else "",
        )
        self.progress.event("valid", epoch=state.epoch, step=state.step, **metrics)
        reported = observed(self.model)
        if reported:
            self.progress.event("observed", epoch=state.epoch, step=state.step, modules=reported)
        self._save(metrics)
        return True

    def _averaged(self) -> contextlib.AbstractContextManager[Mapping[str, torch.Tensor]]:
        return self._ema.averaged() if self._ema is not None else contextlib.nullcontext({})

    def _save(self, metrics: Mapping[str, float]) -> None:
        """Write a checkpoint; with a moving average, the model file holds the average."""
        self._saved_at, self._saved_step = time.monotonic(), self.state.step
        main = distributed.is_main()
        with self._averaged() as trained:
            optimizer = checkpoint.optimizer_tensors(self.stepper.optimizer, self.model)
            optimizer.update({f"{name}/trained": value for name, value in trained.items()})
            files = {
                checkpoint.MODEL: checkpoint.model_tensors(self.model),
                checkpoint.OPTIMIZER: optimizer,
            }
            if self.stepper.ranks.lockstep:  # a sharded model is gathered from all ranks
                files = {
                    name: parallel.gather(tensors, keep=main) for name, tensors in files.items()
                }
            if not main:
                return
            state = {
                "state": asdict(self.state),
                "metrics": metrics,
                "ranking": {"metric": self.config.best, "average_by": self.config.average_by},
                "scaler": self.stepper.scaler.state_dict(),
            }
            path = checkpoint.save(self.folder, self.state.step, files, state)
        self._settle(path)

    def _settle(self, newest: Path) -> None:
        """Write the pointers and delete old checkpoints; a restart after a kill repeats this."""
        config, state, keep = self.config, self.state, set()
        records.point(self.folder, "latest", newest)
        if state.best_step:
            best = checkpoint.folder_of(self.folder, state.best_step)
            how = {"metric": config.best, "value": state.best, "average_by": config.average_by}
            records.point(self.folder, "best", best, **how)
            keep = {
                best,
                *checkpoint.rank(self.folder, config.best, config.average_by)[: config.average],
            }
        checkpoint.prune(self.folder, keep, newest)

    def _restore(self) -> None:
        """Resume from the newest intact checkpoint of the folder, if there is any.

        Rank 0 chooses: others may see a shared folder in another state.
        """
        main, newest = distributed.is_main(), None
        if main:
            checkpoint.bring_back(self.folder)
            newest = checkpoint.latest(self.folder)
        newest = distributed.broadcast_object(newest)
        if newest is None:
            return
        saved = checkpoint.read_state(newest)
        try:
            self.state = TrainState(**saved["state"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{newest} was written by a different version of asrtool: {error}"
            ) from error
        self.stepper.bound.add(self.state.too_large)
        # The checkpoint exists already: a stop before the next step must not write it again.
        self._saved_step = self.state.step
        checkpoint.load_model(self.model, newest)
        tensors = checkpoint.load(newest / checkpoint.OPTIMIZER)
        # With an average of the weights, MODEL holds the average and the optimizer's file the
        # trained weights, which differ from it.
        trained = {name: tensors.pop(name) for name in list(tensors) if name.endswith("/trained")}
        if self._ema is not None:
            self._ema.restore(
                {name.removesuffix("/trained"): value for name, value in trained.items()}
            )
        checkpoint.load_optimizer(self.stepper.optimizer, self.model, tensors)
        self.stepper.scaler.load_state_dict(saved["scaler"])
        logger.info("%s resumes from %s", self.folder.name, newest)
        if main:
            self._settle(newest)

    def _announce(self) -> None:
        """Log what is trained, and run early the checks of what would otherwise fail late."""
        # a sharded model needs every rank in each forward pass: all dry-run, or none
        longest = self.train.longest()
        missing = longest is None
        if self.stepper.ranks.lockstep:
            missing = distributed.largest(missing) > 0
        fits = "" if missing else f"; the longest batch fits: {self.stepper.dry_run(longest)}"
        logger.info(
            "%s: %d of %d steps are done%s", self.folder.name, self.state.step, self.planned, fits
        )
        key = f"{self.folder.name}: trainer.precision"
        tell(self.config.precision, self.precision, self.device, key)
        self._choose_workers(None if missing else longest)
        if self.state.step:
            return
        logger.info("%s", parameter_table(self.model))
        self._troubles.unscored(unscored(self.stepper, self.train.densest()))
        self._troubles.report(0, self.progress)
        rehearse(self.stepper, self.valid, self.rates)

    def _choose_workers(self, longest: Batch | None) -> None:
        """Measure how many loader processes feed the device, if the config leaves that open."""
        if self.train.workers is not None:
            return
        main, chosen = distributed.is_main(), None
        # one measurement serves all ranks, but those of a sharded model compute together
        if longest is not None and (main or self.stepper.ranks.lockstep):
            eats = self.stepper.speed(longest)
            if main:
                feeds = self.train.pace(self.state.epoch, self.state.batch)
                feeding = Feeding(eats=eats, feeds=feeds, cores=cores())
                logger.info("%s: %s", self.folder.name, feeding.describe(self._frame_seconds))
                chosen = feeding.workers
        self.train.workers = distributed.broadcast_object(chosen)

    def _leave(self, number: int) -> int:
        """Save unless the last step is saved already, and log how to continue."""
        if self._saved_step != self.state.step:
            self._save({})
        distributed.barrier()
        logger.info(
            "%s: stopped after step %d of %d; the same command continues",
            self.folder.name,
            self.state.step,
            self.planned,
        )
        return number

    def _finish(self) -> None:
        """Average the checkpoints and mark the phase as finished."""
        if distributed.is_main():
            weights = averaging.average(self.folder, self.config.average)
            state, metric = self.state, self.config.best
            facts = {"step": state.step, "metric": metric, "best": state.best, "bad": state.bad}
            facts["overflows"] = state.overflows
            records.point(
                self.folder, "finished", weights, **facts, sources=averaging.averaged_from(weights)
            )
            self.progress.event("finished", **facts)
            text = (
                f"finished after {self.state.step} steps, best {self.config.best} "
                f"{self.state.best:.4g}"
            )
            logger.info("%s: %s; weights in %s", self.folder.name, text, weights)
        distributed.barrier()


def check_metric(best: str, terms: Iterable[str], rates: Rates | None) -> None:
    """Raise `UserError` if `trainer.best` is not a metric of validation. terms: loss names."""
    known = names(terms, rates)
    if best not in known:
        raise UserError(f"trainer.best: '{best}' is not measured{suggest(best, known)}")
