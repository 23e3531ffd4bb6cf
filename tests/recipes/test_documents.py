"""All bash blocks of README and docs are run, from the root of the project.

Commands that take minutes are run at the smallest size.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from asrtool.experiment import load_phases, split_overrides
from asrtool.export.web import ORT
from tests.recipes.conftest import ROOT, run_in
from tests.recipes.preparation import real

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "egs").glob("*/README.md")),
]
NAMED = re.compile(r"(?:egs/(\w+)/)?conf/((?:\w+/)?(?:train|decode)_\w+\.yaml)")
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY = "--mini true --mini-size tiny --ranks 1 --test-sets train"
EXPORT = "asrtool export exp/mini/train_mini --for sherpa-onnx"

# printed line -> the same command at the smallest size; all other lines are run as printed
SHORTER = {
    "./run.sh": f"./run.sh librispeech {TINY} --stage 4",
    'egs/beeps/run.sh --corpus "$corpus" --ranks 1': 'egs/beeps/run.sh --corpus "$corpus" '
    "--stop-stage 2",
    # tests/interop proves it in sherpa-onnx
    f"{EXPORT} --int8 --data data/mini/test_clean --out exp/mini/train_mini/sherpa": f"{EXPORT} "
    "--no-check --out exp/mini/train_mini/sherpa",
    # tests/interop installs it and opens the page
    "npm install --prefix exp/mini/npm onnxruntime-web": "dist=exp/mini/npm/node_modules/"
    f"onnxruntime-web/dist; mkdir -p $dist; touch {' '.join(f'$dist/{name}' for name in ORT)}",
    "tests/run.sh": "bash -n tests/run.sh",  # these are its tests
    # tests/unit/tools/test_benchmarks.py rehearses it
    "tools/gpu.sh gpu_figures": "bash -n tools/gpu.sh",
    "tools/setup.sh": "tools/setup.sh --if-needed true",
}


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, script in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            found.append((f"{page.relative_to(ROOT)}-{number}", script))
    return found


def shortened(script: str) -> str:
    lines = []
    for line in script.splitlines():
        command = re.sub(r"\s+#.*$", "", line).strip()
        lines.append(SHORTER.get(command, line))
    text = "\n".join(lines).replace("--mini true", TINY)
    text = text.replace("data/mini/test_clean", "data/mini/train")
    text = text.replace("/mini/", "/mini_tiny/").replace(
        "decode_mini/test_clean", "decode_mini/train"
    )
    text = text.replace("fbank80/test_clean", "fbank80/train").replace(
        "downloads/mini_default", "downloads/mini_tiny"
    )
    # one of the tiny set's words is half a point
    text = text.replace(" --int8 --data", " --int8 --most-points 5 --data")
    # the asrtool of the clone, not that of .venv
    return re.sub(r"^asrtool ", "python -m asrtool ", text, flags=re.MULTILINE)


def test_the_readme_prints_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"./run.sh", "tests/run.sh"} <= {
        line for script in BLOCK.findall(text) for line in script.split("\n")
    }


@pytest.mark.parametrize(
    "script", [script for _, script in blocks()], ids=[name for name, _ in blocks()]
)
def test_a_printed_command_runs(script, tiny_alone):
    if "<corpus>" in script:
        script = script.replace("<corpus>", str(real("librispeech_mini")))
    run_in(tiny_alone, f"set -eu\n{shortened(script)}")


def test_every_link_between_pages_leads_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_every_config_that_is_named_exists():
    """`conf/a/b.yaml` in a recipe is one of its own, elsewhere of any recipe. The log names files
    as they were.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", "*.yaml", "*.sh"]
        + ["asrtool/*.py", "egs/*.py", "tools/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    missing = []
    for name in listed:
        if name == "docs/log.md" or not (ROOT / name).exists():
            continue
        recipes = [name.split("/")[1]] if name.startswith("egs/") else ["*"]
        if "/studies/keyframe" in name:
            recipes = ["*"]  # it has the option --recipe
        for recipe, path in NAMED.findall((ROOT / name).read_text(encoding="utf-8")):
            folders = [recipe] if recipe else recipes
            if not any(list(ROOT.glob(f"egs/{folder}/conf/{path}")) for folder in folders):
                missing.append(f"{name}: conf/{path}")
    assert not missing


@pytest.mark.parametrize(
    "page, config",
    [
        ("keyframe", "egs/aishell1/conf/keyframe/train_keyframe.yaml"),
        ("qifusion", "egs/kespeech/conf/qifusion/train_qifusion.yaml"),
    ],
)
def test_the_changes_of_an_ablation_fit_the_config_of_its_page(page, config):
    text = (ROOT / "docs" / "papers" / f"{page}.md").read_text(encoding="utf-8")
    changes = re.findall(r"^\|.* `--train-args \"(.*)\"` \|$", text, re.MULTILINE)
    shipped = load_phases(ROOT / config)
    assert len(changes) > 2
    for change in changes:
        assert load_phases(ROOT / config, split_overrides([change])) != shipped
