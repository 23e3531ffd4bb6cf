"""The report on a trained miniature: the content of its pages."""

from __future__ import annotations

import json
import re

from tests.recipes.conftest import run_in

DECODED = "exp/mini_tiny/train_mini/decode_mini/train"


def test_a_page_of_a_trained_model(tiny_alone):
    recipe = tiny_alone / "egs/librispeech"
    name = (recipe / "data/mini_tiny/train/text").read_text().split()[0]
    run_in(
        recipe,
        f"set -e; . ../../utils/path.sh; python -m asrtool probe {DECODED} --exp "
        "exp/mini_tiny/train_mini --config "
        f"conf/decode_mini.yaml --data dump/mini_tiny/fbank80/train --also {name}; cd ..; "
        f"python -m asrtool report librispeech/{DECODED} --also {name} --audio embed --out "
        f"{tiny_alone}/page.html",
    )
    page = (tiny_alone / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    detail = {data["columns"]["id"][entry["row"]]: entry for entry in data["details"]}[name]
    assert detail["image"] and detail["sound"]
    assert len(detail["times"]) == len(detail["tokens"]) > 0
    curve = detail["curves"]["ctc: not blank"]
    peaks = [curve["values"][round(time / curve["step"])] for time in detail["times"]]
    assert min(peaks) > 0.5, "greedy search puts a token where it is likelier than the blank"
    assert {"loss", "ctc"} <= set(data["curves"][0]["step"])
    assert "training commit" in page and "model:" in page
