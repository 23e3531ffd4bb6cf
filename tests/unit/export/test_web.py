"""The page without a server: its folder, and its search in Node, where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asrtool import page
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.export import web
from asrtool.searchers.ctc.greedy import CtcGreedy, CtcGreedyConfig
from asrtool.types import Padded
from tests.toy_search import heads

FILES = page.files("asrtool.export")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")


def run(folder: Path, script: str, given: object) -> object:
    """The value of an expression; `given` is what it may use beside ctc.js."""
    (folder / "ctc.mjs").write_text(FILES["ctc.js"], encoding="utf-8")
    (folder / "given.json").write_text(json.dumps(given))
    text = f"""import {{ bestPath, join, read }} from "./ctc.mjs";
    import fs from "node:fs";
    const given = JSON.parse(fs.readFileSync("given.json", "utf8"));
    console.log(JSON.stringify({script}));
    """
    (folder / "script.mjs").write_text(text)
    done = subprocess.run(["node", "script.mjs"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_best_path_is_that_of_the_search(tmp_path):
    rng = np.random.default_rng(0)
    rows = [np.round(rng.normal(size=(frames, 4)), 1) for frames in (0, 1, 7, 200)]  # with ties
    rows.append(np.eye(4)[[0, 2, 2, 0, 2, 1, 1, 3, 3, 3, 0, 0]])
    batch = Padded.stack([torch.from_numpy(row).float() for row in rows])
    search = CtcGreedy(CtcGreedyConfig(), model=SimpleNamespace(blank=0, heads=heads("ctc")))
    positions = torch.arange(200).expand(len(rows), -1)
    state = search.advance(search.start(len(rows)), batch, positions)
    expected = [list(found.tokens) for (found,) in search.finish(state)]
    assert expected[-1] == [2, 2, 1, 3] and len(expected[3]) > 50
    script = "given.map(({row, frames}) => bestPath(Float32Array.from(row), frames, 4, 0))"
    # with a row of padding behind
    given = [{"row": [*row.ravel().tolist(), 0, 0, 9, 0], "frames": len(row)} for row in rows]
    assert run(tmp_path, script, given) == expected
    assert run(tmp_path, "bestPath([1, 0, 0, 1, 0, 1], 3, 2, 1)", None) == [0]
    broken = (
        "(() => { try { return bestPath([NaN, NaN], 1, 2, 0); } catch (error) { return 1; } })()"
    )
    assert run(tmp_path, broken, None) == 1


@needs_node
@pytest.mark.parametrize("unit", ["char", "bpe"])
def test_tokens_are_joined_as_the_tokenizer_does(tmp_path, unit):
    lines = ["it's a cat", "caf\u00e9 au lait", "\u6211 \u7231 tea", "a tea at the caf\u00e9"]
    tokenizer = tokenizers.train(lines, unit, 0 if unit == "char" else 40, tmp_path)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokenizer.size, 12).tolist() for _ in range(50)]
    rows += [tokenizer.encode(line) for line in lines] + [[], [1], [1, 1]]
    tokens = (tmp_path / "tokens.txt").read_text(encoding="utf-8")
    found = run(
        tmp_path,
        "given.rows.map((ids) => join(ids, read(given.tokens)))",
        {"rows": rows, "tokens": tokens},
    )
    assert found == [tokenizer.decode(row) for row in rows]


def runtime(folder: Path) -> Path:
    """What stands in for onnxruntime-web where nothing is run."""
    folder.mkdir()
    for name in web.ORT:
        (folder / name).write_text("/*!\n * ONNX Runtime Web v1.2.3\n */\n")
    return folder


def test_the_folder_has_all_that_the_page_loads(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"graph")
    facts = web.write_page(out, runtime(tmp_path / "dist"), "mini", "model.onnx")
    assert facts == {
        "name": "mini",
        "model": "model.onnx",
        "runtime": "onnxruntime-web 1.2.3",
        "bytes": {"model.onnx": 5, "ort/ort-wasm-simd-threaded.wasm": 35},
    }
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    scripts = {f"page/{name}" for name in FILES if name != "index.html"}
    assert found == {"model.onnx", "index.html", *scripts, *(f"ort/{name}" for name in web.ORT)}
    for name in (web.ORT[0], web.ORT[-1]):
        assert f'ort/{name}"' in FILES["worker.js"]


def test_another_folder_is_refused_with_what_to_do(tmp_path):
    folder = runtime(tmp_path / "dist")
    assert len(web.check_ort(folder)) == 3
    (folder / web.ORT[1]).unlink()
    with pytest.raises(UserError, match=rf"{web.ORT[1]} is missing, .*npm install onnxruntime-web"):
        web.check_ort(folder)
