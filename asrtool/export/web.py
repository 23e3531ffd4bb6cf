"""A page without a server of speech: a folder of files that any server of files delivers. The
browser runs the graph, which takes samples, by onnxruntime-web, and searches the best CTC path.

    index.html   page/   the page
    ort/                 onnxruntime-web, as it came
    model.onnx   tokens.txt   export.json
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from asrtool import page
from asrtool.errors import UserError

# the smallest build: WebAssembly on the CPU. Its threads need headers of the server, so the page
# takes one, but there is no build without them
ORT = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
HOW = "npm install onnxruntime-web, then --ort node_modules/onnxruntime-web/dist"


def check_ort(folder: Path) -> list[Path]:
    """The files of onnxruntime-web that the page needs. Raises `UserError` where one is missing."""
    missing = [name for name in ORT if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {missing[0]} is missing, expected the files of onnxruntime-web: {HOW}"
        )
    return [folder / name for name in ORT]


def write_page(target: Path, ort: Path, name: str, model: str) -> dict:
    """Write the page and the runtime beside the graph `target`/`model`; gives what the page reads
    in export.json: the name that it shows, the graph, the runtime, and sizes in bytes.
    """
    for file, text in page.files(__package__).items():
        place = target / ("" if file == "index.html" else "page") / file
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, encoding="utf-8")
    (target / "ort").mkdir()
    for file in check_ort(ort):
        shutil.copyfile(file, target / "ort" / file.name)
    loaded = (model, f"ort/{ORT[-1]}")
    return {
        "name": name,
        "model": model,
        "runtime": f"onnxruntime-web {version(ort)}",
        "bytes": {file: (target / file).stat().st_size for file in loaded},
    }


def version(ort: Path) -> str:
    """As the head of its script says."""
    head = (ort / ORT[0]).read_text(encoding="utf-8", errors="replace")[:500]
    found = re.search(r"ONNX Runtime Web v([\w.-]+)", head)
    return found.group(1) if found else "of an unknown version"
