"""The worked example of docs/data.md: a new corpus, from four files to a word error rate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.recipes.conftest import ROOT, run_in


@pytest.mark.slow
def test_a_new_corpus_needs_four_files_and_is_learnt(tree: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (script,) = [
        block
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        if "egs/beeps/run.sh" in block
    ]
    run_in(tree, f"set -eu\n{script}")
    recipe = tree / "egs" / "beeps"
    written = {str(path.relative_to(recipe)) for path in recipe.rglob("*") if path.is_file()}
    four = {"run.sh", "local/prepare_data.py", "conf/train.yaml", "conf/decode.yaml"}
    assert {name for name in written if name.split("/")[0] not in ("data", "dump", "exp")} == four
    assert (recipe / "data" / "train" / "utt2pitch").exists()
    score = json.loads((recipe / "exp" / "train" / "decode" / "test" / "score.json").read_text())
    assert score["total"]["reference"] > 100 and score["total"]["rate"] < 0.1
