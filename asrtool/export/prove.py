"""The proof of an export: a test set by the exported model and by asrtool, text by text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.export.cached import CachedGraph, Chunks
from asrtool.export.graph import session
from asrtool.export.sherpa import Kind, facts_of, files_of
from asrtool.log import logger
from asrtool.recognizer import Recognizer
from asrtool.score import score
from asrtool.searchers import SEARCHERS, CtcGreedyConfig, TransducerGreedyConfig
from asrtool.streaming import FeatureStream, Session
from asrtool.types import Padded, Utterance

SHOWN = 10  # differing texts that are shown
Hear = Callable[[np.ndarray], str]  # samples (T,) -> text


@dataclass(frozen=True)
class Proof:
    """What came out, for export.json."""

    set: str
    metric: str
    utterances: int
    differing: int  # utterances with another text
    asrtool: float  # error rate in percent
    exported: float

    @property
    def points(self) -> float:
        """By which the error rates differ."""
        return abs(self.exported - self.asrtool)


def require_sherpa() -> None:
    """Raise `UserError` where the wheel is not installed."""
    try:
        import sherpa_onnx  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            "the exported model is tried in sherpa-onnx, which is not installed "
            f"({error}): pip install -e '.[sherpa]', or export unproved by --no-check"
        ) from None


def greedy(recognizer: Recognizer, head: str) -> Recognizer:
    """The same, with the search of what is exported: the best path of one head. That of a
    transducer has at most one token a frame, as in sherpa-onnx.
    """
    config: object = CtcGreedyConfig(input=head)
    if recognizer.model.heads[head].alignment == "transducer":
        config = TransducerGreedyConfig(input=head, max_symbols=1)
    searcher = SEARCHERS.build(
        config, model=recognizer.model, tokens=recognizer.tokenizer.tokens, scorers={}
    )
    settings = replace(recognizer.settings, searcher=config)
    return replace(recognizer, searcher=searcher, settings=settings)


# -- how each of them hears ----------------------------------------------------


def by_asrtool(recognizer: Recognizer) -> Hear:
    """An utterance as a whole."""
    return lambda samples: recognizer.search(Padded.stack([recognizer.inputs(samples)]))[0][0].text


def by_asrtool_in_chunks(recognizer: Recognizer) -> Hear:
    """As `asrtool stream`, but only whole chunks: those of the audio and of silence behind it."""

    def hear(samples: np.ndarray) -> str:
        features = FeatureStream(recognizer)(completed(recognizer, samples), final=True)
        running = Session(recognizer, 1)
        running.accept(Padded.stack([features]), torch.tensor([False]))
        return running.partial()[0].text

    return hear


def completed(recognizer: Recognizer, samples: np.ndarray) -> np.ndarray:
    """The audio with silence behind it, up to the end of a chunk and a frame more, without which
    sherpa-onnx waits for the next one.
    """
    fbank = recognizer.config.data.fbank
    chunk = recognizer.chunk * recognizer.model.encoder.input_frames
    chunks = max(1, -(-fbank.num_frames(len(samples)) // chunk))
    # samples of as many frames: with mirrored ends each takes a shift, else the first takes more
    size = chunks * chunk * fbank.shift + (fbank.length if fbank.snip_edges else fbank.shift)
    return np.concatenate([samples, np.zeros(max(0, size - len(samples)), np.float32)])


def by_onnxruntime(recognizer: Recognizer, file: Path, reads_samples: bool) -> Hear:
    """The graph of whole utterances, and the best path."""
    running = session(file)
    plain = replace(recognizer, cmvn=None)  # the graph normalises by itself

    def hear(samples: np.ndarray) -> str:
        data = samples if reads_samples else plain.inputs(samples).numpy()
        log_probs, frames = running.run(
            None, {"inputs": data[None], "lengths": np.array([len(data)])}
        )
        return best_path(recognizer, log_probs[0, : frames[0]])

    return hear


def by_onnxruntime_in_chunks(recognizer: Recognizer, graph: CachedGraph, file: Path) -> Hear:
    """The graph of chunks: those of the audio and of silence behind it."""
    plain = replace(recognizer, cmvn=None)

    def hear(samples: np.ndarray) -> str:
        features = FeatureStream(plain)(completed(recognizer, samples), final=True)
        count = len(features) // graph.input_frames * graph.input_frames
        step = Chunks(graph, file)
        parts = [step(part[None])[0] for part in features[:count].split(graph.input_frames)]
        return best_path(recognizer, torch.cat(parts).numpy())

    return hear


def best_path(recognizer: Recognizer, log_probs: np.ndarray) -> str:
    """Log-probabilities (S, V) -> text."""
    search, frames = recognizer.searcher, torch.arange(len(log_probs))
    rows = Padded.stack([torch.from_numpy(log_probs)])
    state = search.advance(search.start(1), rows, frames[None])
    return recognizer.tokenizer.decode(search.finish(state)[0][0].tokens)


def by_sherpa(recognizer: Recognizer, kind: Kind, file: Path) -> Hear:
    """sherpa-onnx's recogniser of whole utterances; tokens.txt lies beside the file."""
    import sherpa_onnx

    facts = facts_of(recognizer, kind, streaming=False)
    make = getattr(sherpa_onnx.OfflineRecognizer, facts.pop("recognizer").split(".")[1])
    files = {name: str(path) for name, path in files_of(kind, file).items()}
    running = make(**files, **facts)

    def hear(samples: np.ndarray) -> str:
        stream = running.create_stream()
        stream.accept_waveform(recognizer.rate, samples)
        running.decode_stream(stream)
        return stream.result.text

    return hear


def by_sherpa_online(recognizer: Recognizer, kind: Kind, file: Path) -> Hear:
    """sherpa-onnx's online recogniser, fed a tenth of a second at a time."""
    import sherpa_onnx

    facts = facts_of(recognizer, kind, streaming=True)
    make = getattr(sherpa_onnx.OnlineRecognizer, facts.pop("recognizer").split(".")[1])
    files = {name: str(path) for name, path in files_of(kind, file).items()}
    running = make(**files, num_threads=1, **facts)

    def hear(samples: np.ndarray) -> str:
        stream = running.create_stream()
        samples = completed(recognizer, samples)
        for start in range(0, len(samples), recognizer.rate // 10):
            stream.accept_waveform(recognizer.rate, samples[start : start + recognizer.rate // 10])
            while running.is_ready(stream):
                running.decode_stream(stream)
        stream.input_finished()
        while running.is_ready(stream):
            running.decode_stream(stream)
        return running.get_result(stream)

    return hear


# -- both over a set -----------------------------------------------------------


def read_set(data: Path) -> Sequence[Utterance]:
    """The utterances of a data directory. Raises `UserError` where they have no text."""
    rows = datadir.read(data)
    if not any(row.text for row in rows):
        raise UserError(f"{data}: no utterance has a text; error rates need {data / 'text'}")
    return rows


def texts(recognizer: Recognizer, rows: Sequence[Utterance], hear: Hear) -> dict[str, str]:
    """Utterance -> text, white space as in transcripts."""
    found = {}
    for row in tqdm(rows, desc="recognise", unit="utterance", leave=False, disable=None):
        samples = audio.read(row.audio, *row.stretch, recognizer.rate)
        found[row.id] = " ".join(hear(samples).split())
    return found


def compare(
    rows: Sequence[Utterance],
    ours: dict[str, str],
    theirs: dict[str, str],
    name: str,
    data: Path,
    metric: str,
) -> Proof:
    """Log what differs, and both error rates."""
    truth = {row.id: row.text for row in rows}
    rates = [100 * score(truth, side, metric=metric).total.rate for side in (ours, theirs)]
    differing = [key for key in truth if ours[key] != theirs[key]]
    for key in differing[:SHOWN]:
        logger.info("%s: asrtool '%s', %s '%s'", key, ours[key], name, theirs[key])
    if len(differing) > SHOWN:
        logger.info("... and %d more", len(differing) - SHOWN)
    logger.info(
        "%s: %d of %d texts differ; %s %.2f %% by asrtool, %.2f %% by %s",
        *(data, len(differing), len(truth), metric.upper(), *rates, name),
    )
    return Proof(data.name, metric, len(truth), len(differing), *rates)


def version(program: str) -> str:
    """Its name and version."""
    return f"{program} {metadata.version(program)}"


def refuse(proof: Proof, name: str, most: float) -> None:
    """Raise `UserError` where the error rates differ by more than `most` points."""
    if proof.points > most:
        raise UserError(
            f"{name} has {proof.exported:.2f} % {proof.metric.upper()} where asrtool has "
            f"{proof.asrtool:.2f} %: more than {most:g} points apart (--most-points)"
        )
