"""The folder of an exported model: model.onnx, model.int8.onnx, tokens.txt, export.json. A
transducer for sherpa-onnx has three graphs in place of one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from asrtool.data import tokenizers
from asrtool.data.fbank import SCALE
from asrtool.errors import UserError
from asrtool.export import cached, prove, sherpa, transducer, web, wenet, whole, zipformer
from asrtool.export.features import features_of
from asrtool.export.quantize import quantize
from asrtool.model_folder import sha256
from asrtool.recognizer import Recognizer

FLOAT, INT8, FACTS = ".onnx", ".int8.onnx", "export.json"  # ends of names, and a name


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is asked for."""

    head: str | None = None  # None: the highest-ranking one that has this form
    sherpa: bool = False  # in the form of sherpa-onnx
    streaming: bool = False  # chunk by chunk
    caches: Literal["wenet", "zipformer"] = "wenet"  # whose form the caches have for sherpa-onnx
    from_samples: bool = False  # features in the graph
    web: Path | None = None  # with a page: the files of onnxruntime-web
    name: str | None = None  # that the page shows
    int8: bool = False  # 8-bit weights beside it
    data: Path | None = None  # data directory of the proof
    metric: str = "wer"  # of the proof
    most_points: float = 0.5  # by which error rates may differ there

    @property
    def alignments(self) -> tuple[str, ...] | None:
        """Of the heads that have this form; None: all with log-probabilities."""
        if not self.sherpa:
            return None if self.web is None else ("ctc",)
        transducers = not self.streaming or self.caches == "zipformer"
        return ("ctc", "transducer") if transducers else ("ctc",)

    def __post_init__(self) -> None:
        if self.web is not None and self.streaming:
            raise UserError("the page of --for web hears whole recordings: leave out --streaming")
        if self.from_samples and self.sherpa:
            raise UserError(
                "sherpa-onnx computes log-mel features by itself and gives models no samples: "
                "leave out --from-samples, or --for sherpa-onnx"
            )
        if self.from_samples and self.streaming:
            raise UserError(
                "--from-samples is for whole utterances, since frames reach across the ends of "
                "chunks: leave out --streaming"
            )


class Form(NamedTuple):
    """One form of export: `write` makes its graphs, of which it takes the first one's file, and
    gives the largest difference from PyTorch; `hear` is such a file at work; facts: for
    export.json; graphs: names without ends.
    """

    write: Callable[[Path], float]
    hear: Callable[[Path], prove.Hear]
    program: str  # that runs it in the proof
    reads_samples: bool
    facts: dict
    graphs: tuple[str, ...] = ("model",)


def build(recognizer: Recognizer, config: ExportConfig, vocab: Path, target: Path) -> float:
    """Write everything into `target`; gives the largest difference from PyTorch. Raises `UserError`
    where the model has no such form, or the exported one does not say what it says.
    """
    head = whole.head_of(recognizer, config.alignments, config.head)
    if not config.streaming:  # as the graph hears them, whatever a packed search asks for
        settings = replace(recognizer.settings, chunk_ms=None, left_chunks=None)
        recognizer = replace(recognizer, settings=settings)
    if config.data is not None:
        recognizer = prove.greedy(recognizer, head)
    form = form_of(recognizer, config, head)
    rows = [] if config.data is None else prove.read_set(config.data)
    first, *_ = form.graphs
    largest, ends = form.write(target / f"{first}{FLOAT}"), [FLOAT]
    if config.int8:
        for graph in form.graphs:
            quantize(target / f"{graph}{FLOAT}", target / f"{graph}{INT8}")
        ends.append(INT8)
    files = [f"{first}{end}" for end in ends]
    if config.sherpa:
        sherpa.write_tokens(recognizer, target / tokenizers.TOKENS)
    else:
        shutil.copyfile(vocab / tokenizers.TOKENS, target / tokenizers.TOKENS)
    facts = describe(recognizer, form, head, largest)
    if rows:
        facts["proof"] = proofs(recognizer, config, form, rows, [target / name for name in files])
    if config.web is not None:
        facts["page"] = web.write_page(target, config.web, config.name, files[-1])
    names = [f"{graph}{end}" for end in ends for graph in form.graphs]
    facts["sha256"] = {name: sha256(target / name) for name in names}
    (target / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return largest


def form_of(recognizer: Recognizer, config: ExportConfig, head: str) -> Form:
    """The form that is asked for. Raises `UserError` where the model does not have it."""
    kinds = sherpa.ONLINE[config.caches] if config.streaming else sherpa.OFFLINE
    if recognizer.model.heads[head].alignment == "transducer":
        transducer.head_of(recognizer, head)
        kinds = (sherpa.TRANSDUCER,)
    kind = sherpa.kind_of(recognizer, kinds) if config.sherpa else None
    if kind is not None:
        sherpa.warn_of_times(recognizer, kind)
    if config.streaming:
        if recognizer.config.data.input != "fbank":
            raise UserError("--streaming needs a model of features; this one reads samples whole")
        return streaming_form(recognizer, kind, cached.CachedGraph(recognizer, head))
    graph = whole.Graph(recognizer, head, config.from_samples).eval()
    if kind is None:
        return Form(
            write=lambda file: whole.export(recognizer, graph, file),
            hear=lambda file: prove.by_onnxruntime(recognizer, file, graph.reads_samples),
            program="onnxruntime",
            reads_samples=graph.reads_samples,
            facts={"shapes compared": whole.SHAPES},
        )
    facts = sherpa.metadata(recognizer, kind)
    form = Form(
        write=lambda file: whole.export(recognizer, graph, file, facts),
        hear=lambda file: prove.by_sherpa(recognizer, kind, file),
        program="sherpa-onnx",
        reads_samples=False,
        facts={"sherpa-onnx": sherpa.facts_of(recognizer, kind, streaming=False)},
    )
    return with_parts(recognizer, kind, head, form)


def with_parts(recognizer: Recognizer, kind: sherpa.Kind, head: str, form: Form) -> Form:
    """For a transducer, the form with graphs of predictor and joiner beside that of the encoder."""
    if kind != sherpa.TRANSDUCER:
        return form
    return form._replace(
        write=lambda file: transducer.export(recognizer, head, file, form.write),
        graphs=sherpa.PARTS,
    )


def streaming_form(
    recognizer: Recognizer, kind: sherpa.Kind | None, graph: cached.CachedGraph
) -> Form:
    """In chunks, with the caches of a form of sherpa-onnx, else with those of the encoder."""
    graph = graph.eval()
    chunks = {
        "chunk_frames": graph.input_frames,  # features
        "left_chunks": graph.left_chunks,
    }
    if kind is None:
        shapes = {name: list(part.shape) for name, part in graph.state.items()}
        return Form(
            write=lambda file: cached.export(recognizer, graph, file),
            hear=lambda file: prove.by_onnxruntime_in_chunks(recognizer, graph, file),
            program="onnxruntime",
            reads_samples=False,
            facts={"streaming": {**chunks, "caches": shapes}},
        )
    fbank, facts = recognizer.config.data.fbank, {"streaming": chunks}
    if kind.name != "wenet_ctc":
        packed, form = zipformer.ZipformerGraph(graph).eval(), zipformer
    else:
        packed, form = wenet.WenetGraph(graph, *sherpa.scaled(fbank)).eval(), wenet
        # what it computes for WeNet's models
        facts["features"] = features_of(replace(fbank, sample_scale=SCALE))
    facts["sherpa-onnx"] = sherpa.facts_of(recognizer, kind, streaming=True)
    made = Form(
        write=lambda file: form.export(recognizer, packed, file),
        hear=lambda file: prove.by_sherpa_online(recognizer, kind, file),
        program="sherpa-onnx",
        reads_samples=False,
        facts=facts,
    )
    return with_parts(recognizer, kind, graph.head, made)


def proofs(
    recognizer: Recognizer,
    config: ExportConfig,
    form: Form,
    rows: list,
    files: list[Path],
) -> dict[str, dict]:
    """File -> what came out. Raises `UserError` where error rates are too far apart."""
    listen = prove.by_asrtool_in_chunks if config.streaming else prove.by_asrtool
    ours = prove.texts(recognizer, rows, listen(recognizer))
    found = {}
    for file in files:
        name = f"{file.name} in {form.program}"
        theirs = prove.texts(recognizer, rows, form.hear(file))
        found[file.name] = prove.compare(rows, ours, theirs, name, config.data, config.metric)
        prove.refuse(found[file.name], name, config.most_points)
    return {
        name: {"program": prove.version(form.program), **asdict(proof)}
        for name, proof in found.items()
    }


def describe(recognizer: Recognizer, form: Form, head: str, largest: float) -> dict:
    """What another program has to know."""
    data, fbank = recognizer.config.data, recognizer.config.data.fbank
    features = data.input == "fbank"
    return {
        "input": "waveform" if form.reads_samples else data.input,
        "rate": fbank.rate,
        "fbank": asdict(fbank) if features else None,
        "features": features_of(fbank) if features else None,
        "normalised inside": recognizer.cmvn is not None and features,
        "head": head,
        "frame_shift": recognizer.model.frame_shift,
        "blank": recognizer.model.blank,
        "largest difference": largest,
        "weights": recognizer.fingerprint(),
        "torch": torch.__version__,
        **form.facts,
    }
