"""The folder of an experiment, `exp/<tag>`, and whether a training may continue in it.

    config.yaml    every phase, fully resolved, as decoding reads it
    vocab/  cmvn.json    copies, so that decoding needs no other folder
    git.txt  command.txt    one line per start
    log.jsonl  bad_batches.jsonl    records of training
    <phase>/    checkpoints (asrtool/trainer/checkpoint.py)

A long training never restarts by accident: a different config, data set or vocabulary for the same
folder is an error that lists the differences.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.system import atomic, stamp
from asrtool.trainer import records

# Settings that may change when a run resumes: they affect neither weights nor scores, or only by
# rounding, as the number of ranks does
NEUTRAL = (
    "data.batch.max_seconds_per_device",
    "data.workers",
    "trainer.activation_checkpointing",
    "trainer.log_every",
    "trainer.out_of_memory",
    "trainer.parallel",
    "trainer.save_every_seconds",
    "trainer.tensorboard",
    "trainer.tf32",
    "trainer.wandb",
)


def prepare(
    exp: Path,
    phases: Mapping[str, Mapping],
    yaml_text: str,
    sources: Mapping[str, Path],
    command: str,
    force: bool = False,
) -> None:
    """Prepare `exp` for this training, or check that it already holds it.

    phases: name -> resolved config as plain values; yaml_text: the same as YAML; sources: role ->
    folder or file, of which "vocab" and parts of "train" are copied. A different training in the
    folder is a `UserError`, unless it has no checkpoint yet; with `force` it is moved aside.
    """
    now = {
        "phases": phases,
        "sources": {role: stamp.digest(path) for role, path in sources.items()},
    }
    now = json.loads(json.dumps(now))  # tuples become lists, as they are read back
    # without a stamp but with weights, config.yaml is all that is left to compare
    before, trained = stamp.read(exp), _trained(exp)
    if before is not None:
        changes = list(differences(before, now))
    else:
        changes = _unlike(exp / "config.yaml", yaml_text) if trained else []
    if changes and trained and not force:
        listed = "\n".join(f"  {change}" for change in changes)
        raise UserError(
            f"{exp} holds a different training; differences:\n{listed}\nGive this training its own"
            " name (--tag, or another --exp), or start again with --force true"
        )
    if changes and not trained:
        shutil.rmtree(exp)  # stopped before its first checkpoint: nothing is lost
        before = None
    elif changes:
        aside = exp.with_name(f"{exp.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(exp, aside)
        logger.info("the previous training was moved to %s", aside)
        before = None
    if before is None:
        _write(exp, now, yaml_text, sources)
    for name, line in (("git.txt", version()), ("command.txt", command)):
        with open(exp / name, "a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%F %T')} {line}\n")


def finished(phase: Path) -> bool:
    """Whether a phase has finished training."""
    return records.pointer(phase, "finished") is not None


def changed_copy(exp: Path) -> str | None:
    """The copy made by training, vocab or cmvn.json, that has changed since; None: neither has, or
    there is no record of them.
    """
    stamped = stamp.read(exp) or {}
    known = {"vocab": stamped.get("sources", {}).get("vocab"), **stamped.get("copies", {})}
    return next(
        (
            name
            for name, digest in known.items()
            if digest is not None and (exp / name).exists() and stamp.digest(exp / name) != digest
        ),
        None,
    )


def take_phases(source: Path, target: Path, phases: Collection[str]) -> None:
    """Create the experiment `target` from finished phases of `source`, to train further phases."""
    if target.exists():
        raise UserError(f"{target} already exists; choose another name, or remove it")
    with atomic.replacing_folder(target) as new:
        for phase in phases:
            shutil.copytree(source / phase, new / phase)
        with (source / "log.jsonl").open(encoding="utf-8") as log:
            kept = [line for line in log if json.loads(line).get("phase") in phases]
        (new / "log.jsonl").write_text("".join(kept), encoding="utf-8")


def differences(before: Mapping, now: Mapping) -> Iterator[str]:
    """The differences between two descriptions of a training, by key."""
    old, new = _flat(before.get("phases", {})), _flat(now["phases"])
    single = len(now["phases"]) == 1
    for key in [*new, *(key for key in old if key not in new)]:
        phase, _, short = key.partition(".")
        if old.get(key) == new.get(key) or short in NEUTRAL:
            continue
        there, here = (
            json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
            for values in (old, new)
        )
        yield f"{short if single else key}: {there} there, {here} now"
    for role, digest in now["sources"].items():
        if before.get("sources", {}).get(role) != digest:
            yield f"the content of --{role}"
    yield from (
        f"--{role} was given" for role in before.get("sources", {}) if role not in now["sources"]
    )


def version() -> str:
    """The git commit of the code, with a note if there are uncommitted changes."""

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            " and uncommitted changes" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"


def _trained(exp: Path) -> bool:
    """Whether any phase has weights. Raises `OSError` if the folder cannot be read."""
    if not exp.exists():
        return False
    with os.scandir(exp) as entries:
        phases = [entry.path for entry in entries if entry.is_dir()]
    return any(
        name.startswith(("step-", "average-", "finished"))
        for phase in phases
        for name in os.listdir(phase)
    )


def _unlike(config: Path, yaml_text: str) -> list[str]:
    """The differences if the stamp is lost. Phases copied by `take_phases` have no config yet."""
    if not config.exists() or config.read_text(encoding="utf-8") == yaml_text:
        return []
    return [f"config.yaml ({stamp.NAME}, which has more details, is missing or damaged)"]


def _write(exp: Path, now: Mapping, yaml_text: str, sources: Mapping[str, Path]) -> None:
    """Write copies, config and stamp. The stamp comes last: without it the folder counts as new."""
    with atomic.replacing_folder(exp / "vocab") as vocab:
        shutil.copytree(sources["vocab"], vocab, dirs_exist_ok=True)
    if (sources["train"] / "cmvn.json").exists():
        with atomic.replacing(exp / "cmvn.json") as aside:
            shutil.copyfile(sources["train"] / "cmvn.json", aside)
        now = {**now, "copies": {"cmvn.json": stamp.digest(exp / "cmvn.json")}}
    atomic.write_text(exp / "config.yaml", yaml_text)
    atomic.write_text(exp / stamp.NAME, json.dumps(now, indent=1, ensure_ascii=False) + "\n")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat
