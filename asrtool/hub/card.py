"""The model card of a packed model (README.md): the contents of model.json for people, and a YAML
header for the Hugging Face Hub.

Scores are those of model.json, with interval, reference length and text normalisation; without any,
the header has neither `metrics` nor `model-index`. Its keys are those of huggingface_hub's
ModelCardData.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asrtool import hub
from asrtool.hub import Reference

README = "README.md"
TASK = "automatic-speech-recognition"


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What the model card on the hub says beyond model.json."""

    reference: Reference
    license: str  # the hub's identifier, such as apache-2.0
    languages: Sequence[str] = ()  # ISO 639
    datasets: Sequence[str] = ()  # names on the hub
    tags: Sequence[str] = ()
    # hub name of each base model -> its licence; None: its weights are not included
    bases: Mapping[str, str | None] | None = None


def render(card: Mapping, config: str, publication: Publication | None = None) -> str:
    """The text of README.md. card: model.json. config: config.yaml."""
    parts = [*_opening(card, publication), *_origin(card, publication), *_results(card)]
    parts += ["", "## Configuration", "", "```yaml", config.rstrip("\n"), "```"]
    head = "" if publication is None else f"---\n{_head(card, publication)}\n---\n"
    return head + "\n".join(parts) + "\n"


def _opening(card: Mapping, publication: Publication | None) -> Iterator[str]:
    name = "<this folder>" if publication is None else publication.reference
    yield from (f"# {card['name']}", "")
    yield "A speech recognition model for asrtool:"
    yield from ("", "```", f"asrtool recognize {name} a.wav", "```", "")
    yield from ("or", "", "```python", "import asrtool", "")
    yield from (f'print(asrtool.load("{name}").recognize("a.wav").text)', "```", "")
    for base in card.get("bases", ()):
        where = f"`{base['weights']}`" + (
            f", revision `{base['revision']}`" if base["revision"] else ""
        )
        yield (
            "This folder contains only the trained tensors. The base weights of its "
            f"{base['part']} are those of {where}. They are loaded by that name, and their SHA-256 "
            "is checked:"
        )
        yield from ("", *(f"* `{file}`: `{sum_}`" for file, sum_ in base["files"].items()), "")


def _origin(card: Mapping, publication: Publication | None) -> Iterator[str]:
    origin = card["origin"]
    made_of = f" ({origin['checkpoints']})" if origin["checkpoints"] else ""
    rows = {
        "licence": None if publication is None else publication.license,
        "SHA-256 of the weights": f"`{card['sha256']}`",
        "parameters": f"{card['parameters']:,}",
        "asrtool": card["asrtool"],
        "trained with": origin["commit"] or "unknown",
        "started from": origin.get("init"),
        "experiment, phase": f"{origin['experiment']}, {origin['phase']}",
        "weights": f"{origin['weights']}{made_of}",
        "seed": origin["seed"],
        "training data": f"digest {origin['data'].get('train', 'unknown')}",
        "search": f"`{card['search']}`" if "search" in card else None,
    }
    for name, licence in _bases(publication).items():
        rows[f"base model `{name}`"] = licence or "not included"
    yield from ("## Origin", "", "| | |", "|---|---|")
    yield from (f"| {key} | {value} |" for key, value in rows.items() if value is not None)


def _results(card: Mapping) -> Iterator[str]:
    yield from ("", "## Results", "")
    if not card["results"]:
        yield "None: these weights had not been scored when the model was packed."
        return
    yield "| decoding | set | metric | rate | 95 % interval | of | normalizer |"
    yield "|---|---|---|---|---|---|---|"
    for row in card["results"]:
        interval = row.get("interval")
        cells = (
            *(row["decode"], row["set"], row["metric"]),
            "none" if row["rate"] is None else f"{100 * row['rate']:.2f} %",
            "" if interval is None else " to ".join(f"{100 * end:.2f}" for end in interval),
            *(row["reference"], row["normalizer"]),
        )
        yield "| " + " | ".join(map(str, cells)) + " |"


def _bases(publication: Publication | None) -> Mapping[str, str | None]:
    return {} if publication is None else publication.bases or {}


def _head(card: Mapping, publication: Publication) -> str:
    """The YAML header."""
    hub_client = hub.client()
    started = card["origin"].get("init")
    bases = list(_bases(publication))
    if started is not None and hub.is_reference(started):
        bases.append(Reference.parse(started).repo)
    scored = [row for row in card["results"] if row["rate"] is not None]
    relation = "adapter" if card.get("bases") else "finetune"
    data = hub_client.ModelCardData(
        license=publication.license,
        language=list(publication.languages) or None,
        library_name="asrtool",
        pipeline_tag=TASK,
        tags=["asrtool", TASK, *publication.tags],
        datasets=list(publication.datasets) or None,
        metrics=sorted({row["metric"] for row in scored}) or None,
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation=relation if bases else None,
        model_name=card["name"],
        eval_results=[_evaluation(hub_client, row) for row in scored] or None,
    )
    return data.to_yaml()


def _evaluation(client: object, row: Mapping) -> object:
    """A score as an entry of the model-index, in percent."""
    interval = row.get("interval")
    settings = {"normalizer": row["normalizer"], "reference": row["reference"]}
    if interval is not None:
        settings["interval"] = [round(100 * end, 2) for end in interval]
    return client.EvalResult(
        task_type=TASK,
        dataset_type=row["set"],
        dataset_name=row["set"],
        metric_type=row["metric"],
        metric_name=f"{row['metric'].upper()} % ({row['decode']})",
        metric_value=round(100 * row["rate"], 2),
        metric_args=settings,
    )
