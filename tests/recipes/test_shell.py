"""The recipe engine, its options and the top-level commands, on a fake recipe.

`python` of the recipe's local/path.sh is a script that appends its arguments to a file, so tests
see the exact command lines without running the commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.fake_recipe import MINI, ROOT, Recipe

TORCHRUN = ["python", "-m", "asrtool.bin.torchrun", "--standalone"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path, MINI)


def value(call: list[str], option: str) -> str:
    return call[call.index(option) + 1]


# -- options ----------------------------------------------------------------


def test_help_lists_every_option_of_recipe_and_engine(recipe: Recipe) -> None:
    done = recipe.run("--help")
    assert done.returncode == 0
    listed = set(re.findall(r"^  --([a-z-]+) ", done.stdout, re.MULTILINE))
    engine = (
        "stage stop_stage nj ngpu ranks num_nodes master tag train_args decode_tag "
        "decode_args lm_config lm lm_text init_from init_vocab tune tokenizer text_case"
    )
    engine += " data_dirs extra_sets imports import_from missing mini mini_size force dry_run"
    own = "corpus train_config decode_config test_sets unit vocab_size"
    assert " ".join(sorted(listed)) == " ".join(sorted(f"{engine} {own}".replace("_", "-").split()))
    assert "A recipe that only writes down its commands" in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--stge", "--stage"),
        ("--stop-stag=3", "--stop-stage"),
        ("--train_confg", "--train-config"),
        ("-stage", "--stage"),
        ("--dryrun", "--dry-run"),
        ("--gpu", "--ngpu"),
    ],
)
def test_a_misspelt_option_stops_the_run_and_names_the_one_meant(
    recipe: Recipe, typed: str, meant: str
) -> None:
    done = recipe.run(typed, "1")
    assert done.returncode == 2
    assert f"did you mean {meant}?" in done.stderr
    assert recipe.calls() == []


@pytest.mark.parametrize("name", ["PATH", "root", "recipe", "given", "IFS", "zzz"])
def test_a_variable_that_is_no_option_cannot_be_set(recipe: Recipe, name: str) -> None:
    done = recipe.run(f"--{name}", "1")
    assert done.returncode == 2
    assert f"unknown option --{name}" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tag"], "option --tag needs a value"),
        (["--tag", "--nj", "2"], "option --tag needs a value"),
        (["--mini", "yes"], "option --mini must be true or false, not 'yes'"),
        (["3"], "unexpected argument '3'"),
        (["--stage", "three"], "option --stage must be a whole number of at least -1, not 'three'"),
        (["--nj", "0"], "option --nj must be a whole number of at least 1, not '0'"),
        (["--ngpu", "1.5"], "option --ngpu must be a whole number of at least 0, not '1.5'"),
        (["--stage", "4", "--stop-stage", "3"], "nothing to run from --stage 4 to --stop-stage 3"),
        (["--mini", "true", "--corpus", "x"], "cannot be combined"),
        (["--data-dirs", "x", "--corpus", "y"], "--data-dirs and --corpus cannot be combined"),
        (["--data-dirs", "x", "--mini", "true"], "--data-dirs and --mini true cannot be combined"),
        (["--tag", "../x"], "--tag '../x' is not a valid folder name"),
        (["--decode-tag", "a/b"], "--decode-tag 'a/b' is not a valid folder name"),
        (["--test-sets", "test .."], "the set '..' is not a valid folder name"),
        (["--init-vocab", "add"], "--init-vocab must be keep, extend or replace, not 'add'"),
        (["--init-vocab", "extend"], "--init-vocab needs --init-from <folder>"),
        (
            ["--init-from", "x", "--tune", "false", "--init-vocab", "replace"],
            "--tune false decodes the model as it is: leave --init-vocab out",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_and_status_2(
    recipe: Recipe, options: list[str], sentence: str
) -> None:
    done = recipe.run(*options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert recipe.calls() == []


@pytest.mark.parametrize(
    "options",
    [
        ["--stop-stage", "2", "--stage", "2"],
        ["--stop_stage", "2", "--stage=2"],
        ["--stop_stage=2", "--stage", "2"],
    ],
)
def test_options_are_written_with_dash_underscore_or_equals_sign(
    recipe: Recipe, options: list[str]
) -> None:
    assert recipe.run(*options).returncode == 0
    assert [call[2] for call in recipe.calls()] == ["asrtool.bin.make_vocab"]


def test_a_switch_without_a_value_is_true(recipe: Recipe) -> None:
    done = recipe.run("--dry-run", "--stage", "2")
    assert done.returncode == 0
    assert recipe.calls() == []


# -- stages -----------------------------------------------------------------


def test_stages_0_to_4_call_their_commands_in_order_with_their_folders(recipe: Recipe) -> None:
    done = recipe.run("--stop-stage", "4", "--nj", "3", "--ngpu", "1")
    assert done.returncode == 0, done.stderr
    assert [" ".join(call) for call in recipe.calls()] == [
        "python local/prepare_data.py --corpus downloads/corpus --out data",
        "python -m asrtool.bin.check_data data/train data/dev data/test data/other",
        *[
            "python -m asrtool.bin.extract_features --config conf/train_full.yaml --nj 3"
            f" --data data/{name} --out dump/fbank80/{name}"
            + (" --training" if name == "train" else "")
            for name in ("train", "dev", "test", "other")
        ],
        "python -m asrtool.bin.make_vocab --text data/train/text --unit bpe --size 500 --out "
        "data/vocab_bpe_500",
        "python -m asrtool.bin.train --config conf/train_full.yaml --train dump/fbank80/train "
        "--valid dump/fbank80/dev"
        " --vocab data/vocab_bpe_500 --exp exp/train_full",
        *[
            "python -m asrtool.bin.decode --exp exp/train_full --config conf/decode_full.yaml"
            f" --data dump/fbank80/{name} --out exp/train_full/decode_full/{name}"
            for name in ("test", "other")
        ],
    ]


def test_a_training_starts_from_a_model_of_another_recipe_with_its_vocabulary(
    recipe: Recipe,
) -> None:
    (recipe.folder.parent / "other" / "exp" / "big").mkdir(parents=True)
    options = ("--dry-run", "true", "--ngpu", "1", "--init-from", "../other/exp/big")
    text = recipe.run(*options).stdout
    assert "make_vocab" not in text and "using the vocabulary of ../other/exp/big" in text
    assert "--vocab ../other/exp/big/vocab --exp exp/train_full --init ../other/exp/big" in text
    assert "asrtool.bin.decode --exp exp/train_full " in text


@pytest.mark.parametrize(
    ("how", "made", "vocab"),
    [
        ("extend", "--extend {big}/vocab --out data/vocab_big", "data/vocab_big"),
        ("replace", "--unit bpe --size 500 --out data/vocab_bpe_500", "data/vocab_bpe_500"),
    ],
)
def test_its_vocabulary_is_extended_or_replaced(
    recipe: Recipe, tmp_path: Path, how: str, made: str, vocab: str
) -> None:
    big = tmp_path / "big"  # an absolute path
    big.mkdir()
    options = ("--dry-run", "true", "--ngpu", "1", "--init-from", str(big), "--init-vocab", how)
    text = recipe.run(*options).stdout
    assert f"make_vocab --text data/train/text {made.format(big=big)}\n" in text
    assert f"--vocab {vocab} --exp exp/train_full --init {big} --set init.vocab={how}" in text


def test_the_vocabulary_may_be_that_of_a_language_model(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    stage = ("--dry-run", "true", "--stage", "2", "--stop-stage", "2", "--unit", "hf")
    text = recipe.run(*stage, "--tokenizer", "llm", at=tmp_path).stdout
    made = f"--unit hf --tokenizer {tmp_path}/llm --case lower --out data/vocab_hf\n"
    assert f"make_vocab --text data/train/text {made}" in text
    kept = recipe.run(*stage, "--tokenizer", "google/gemma", "--text-case", "keep").stdout
    assert "--unit hf --tokenizer google/gemma --case keep --out data/vocab_hf\n" in kept
    done = recipe.run(*stage)
    assert (
        done.returncode == 2 and "--unit hf needs --tokenizer <hub name or folder>" in done.stderr
    )


def test_a_model_of_the_hub_is_fetched_before_the_stages(recipe: Recipe) -> None:
    folder = recipe.folder / "cache" / "0123"
    folder.mkdir(parents=True)
    start, rest = recipe.fake.split("\n", 1)
    fetch = f'if [[ $2 == asrtool.bin.fetch ]]; then echo "$3 is here" >&2; echo {folder}; exit; fi'
    recipe.write("fake/python", f"{start}\n{fetch}\n{rest}")
    options = ("--dry-run", "true", "--ngpu", "1", "--init-from", "hf:me/big@v1")
    done = recipe.run(*options)
    assert "hf:me/big@v1 is here" in done.stderr
    assert f"--vocab {folder}/vocab --exp exp/train_full --init {folder}" in done.stdout
    text = recipe.run(*options, "--tune", "false").stdout
    assert f"--exp {folder} " in text and "--out exp/from_big/decode_full/test" in text
    fails = "if [[ $2 == asrtool.bin.fetch ]]; then exit 1; fi"
    recipe.write("fake/python", f"{start}\n{fails}\n{rest}")
    done = recipe.run(*options)
    assert done.returncode == 1 and "asrtool.bin.train" not in done.stdout


def test_a_model_of_another_recipe_is_decoded_as_it_is(recipe: Recipe) -> None:
    (recipe.folder.parent / "other" / "exp" / "big").mkdir(parents=True)
    options = ("--dry-run", "true", "--ngpu", "1", "--init-from", "../other/exp/big")
    text = recipe.run(*options, "--tune", "false").stdout
    assert "asrtool.bin.train" not in text and "nothing to train" in text
    assert "asrtool.bin.decode --exp ../other/exp/big " in text
    assert "--out exp/from_big/decode_full/test" in text and "score.sh" in text
    done = recipe.run("--dry-run", "true", "--tune", "false")
    assert done.returncode and "--tune false needs --init-from" in done.stderr


def test_mini_takes_small_configs_and_folders_of_its_own(recipe: Recipe) -> None:
    text = recipe.run("--mini", "true", "--dry-run", "--ngpu", "1").stdout
    for part in (
        "make_mini_corpus.py --layout fake --out downloads/mini_default --size default",
        "--out data/mini\n",
        "--out dump/mini/fbank80/train --training",
        "--vocab data/mini/vocab_char --exp exp/mini/train_mini\n",
        "--config conf/decode_mini.yaml",
        "--out exp/mini/train_mini/decode_mini/test",
    ):
        assert part in text
    assert "train_full" not in text


def test_another_size_of_the_miniature_has_other_folders(recipe: Recipe) -> None:
    text = recipe.run("--mini", "true", "--mini-size", "tiny", "--dry-run", "true").stdout
    assert "--out downloads/mini_tiny --size tiny" in text
    assert "--exp exp/mini_tiny/train_mini" in text


def test_a_config_on_the_command_line_wins_over_the_miniatures(recipe: Recipe) -> None:
    text = recipe.run(
        "--mini", "true", "--train-config", "conf/mine.yaml", "--dry-run", "true"
    ).stdout
    assert "--exp exp/mini/mine" in text
    assert "conf/decode_mini.yaml" in text


def test_a_recipe_without_a_miniature_says_so(tmp_path: Path) -> None:
    done = Recipe(tmp_path).run("--mini", "true")
    assert done.returncode == 2
    assert "fake has no miniature" in done.stderr


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (["--ngpu", "4"], 4),
        (["--ngpu", "1"], None),
        (["--ngpu", "0", "--ranks", "3"], 3),
        (["--ngpu", "0", "--ranks", "1"], None),
    ],
)
def test_training_and_decoding_run_one_process_per_gpu_or_cpu_rank(
    recipe: Recipe, options: list[str], processes: int | None
) -> None:
    assert (
        recipe.run("--stage", "3", "--stop-stage", "4", "--test-sets", "test", *options).returncode
        == 0
    )
    start = ["python"] if processes is None else [*TORCHRUN, "--nproc-per-node", str(processes)]
    for call, command in zip(recipe.calls(), ("train", "decode"), strict=True):
        assert call[: len(start) + 2] == [*start, "-m", f"asrtool.bin.{command}"]


def test_overrides_stay_one_argument_whatever_they_hold(recipe: Recipe) -> None:
    overrides = "optim.lr=1e-4 model.encoder='{dim: 144, note: \"a b\"}' x=$HOME;*"
    done = recipe.run(
        "--stage",
        "3",
        "--stop-stage",
        "3",
        "--ngpu",
        "1",
        "--train-args",
        overrides,
        "--force",
        "true",
    )
    assert done.returncode == 0
    assert value(recipe.call("train"), "--set") == overrides
    assert value(recipe.call("train"), "--force") == "true"


def test_a_language_model_is_trained_first_and_decoded_with(recipe: Recipe) -> None:
    recipe.run(
        "--stage",
        "3",
        "--stop-stage",
        "4",
        "--ngpu",
        "1",
        "--lm-config",
        "conf/lm.yaml",
        "--lm-text",
        "a.txt",
    )
    first, second, *decodings = recipe.calls()
    assert [value(first, f"--{name}") for name in ("config", "text", "exp")] == [
        "conf/lm.yaml",
        "a.txt",
        "exp/lm",
    ]
    assert value(second, "--config") == "conf/train_full.yaml"
    assert {value(call, "--lm") for call in decodings} == {"exp/lm"}


def test_an_ngram_model_is_estimated_in_stage_2_and_decoded_with(recipe: Recipe) -> None:
    recipe.run("--stage", "2", "--stop-stage", "4", "--ngpu", "1", "--lm", "ngram:3")
    made = recipe.call("asrtool.bin.ngram")
    assert value(made, "--order") == "3" and value(made, "--transcripts").endswith("/text")
    decoded = [call for call in recipe.calls() if "asrtool.bin.decode" in call]
    assert [value(call, "--ngram") for call in decoded] == 2 * [value(made, "--out")]
    done = recipe.run("--lm", "lstm")
    assert done.returncode == 2 and "--lm must be ngram:<order>" in done.stderr


def test_the_test_sets_are_those_that_stage_0_found(recipe: Recipe) -> None:
    recipe.write("data/test_sets", "test\n")
    recipe.run("--stage", "4", "--stop-stage", "4", "--ngpu", "1")
    assert [value(call, "--data") for call in recipe.calls()] == ["dump/fbank80/test"]


def test_a_recipe_replaces_a_stage_and_may_call_the_default(tmp_path: Path) -> None:
    recipe = Recipe(
        tmp_path, "stage_vocabulary() { run python before; default_vocabulary; run python after; }"
    )
    assert recipe.run("--stage", "2", "--stop-stage", "2").returncode == 0
    assert [call[1] for call in recipe.calls()] == ["before", "-m", "after"]


def test_options_of_the_data_preparation_come_from_the_recipe(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, 'prepare_args=(--train-parts "a b")')
    recipe.run("--stop-stage", "0")
    assert recipe.calls()[0][-2:] == ["--train-parts", "a b"]


def test_a_path_on_the_command_line_counts_from_where_it_was_typed(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    recipe.run("--stop-stage", "0", "--corpus", "mine", at=tmp_path / "elsewhere")
    assert Path(value(recipe.call("prepare_data"), "--corpus")).samefile(
        tmp_path / "elsewhere" / "mine"
    )


def test_results_are_a_table_of_all_test_sets(recipe: Recipe) -> None:
    for name, rate in (("test", 0.0732), ("other", 0.2)):
        counts = {
            "correct": 90,
            "substitutions": 5,
            "deletions": 1,
            "insertions": 1,
            "reference": 100,
            "rate": rate,
        }
        recipe.write(
            f"exp/train_full/decode_full/{name}/score.json",
            json.dumps({"metric": "wer", "total": counts}),
        )
    done = recipe.run("--stage", "5")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^ +test +7\.32 +100 +5 +1 +1 " r"+exp/train_full/decode_full/test/result.txt$",
        done.stdout,
        re.M,
    )
    assert re.search(r"^ +other +20\.00 ", done.stdout, re.M)


# -- what is printed can be pasted --------------------------------------------


def test_a_dry_run_runs_nothing_and_prints_a_script_that_does_the_same(recipe: Recipe) -> None:
    options = (
        "--stop-stage",
        "4",
        "--ngpu",
        "0",
        "--ranks",
        "2",
        "--train-args",
        "a.b='{c: 1}' d=\"x y\"",
    )
    dry = recipe.run(*options, "--dry-run", "true")
    assert recipe.calls() == []
    subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=dry.stdout,
        text=True,
        cwd="/",
        env=recipe.environment(),
        check=True,
    )
    pasted = recipe.calls()
    recipe.calls_file.unlink()
    assert recipe.run(*options).returncode == 0
    assert pasted == recipe.calls() != []


# -- what goes wrong ----------------------------------------------------------


def test_a_missing_corpus_is_one_sentence_with_the_ways_out(recipe: Recipe) -> None:
    (recipe.folder / "downloads" / "corpus").rmdir()
    done = recipe.run()
    assert done.returncode == 1
    assert f"no corpus at 'downloads/corpus' (looked in {recipe.folder})" in done.stderr
    assert "--corpus <folder>" in done.stderr
    assert "--mini true" in done.stderr
    assert "--stage -1" not in done.stderr  # this recipe cannot download
    assert recipe.calls() == []


def test_stage_minus_1_downloads_only_what_is_missing(recipe: Recipe) -> None:
    recipe.write("local/download_data.sh", 'python download "$1"\n')
    recipe.run("--stage", "-1", "--stop-stage", "-1")
    assert recipe.calls() == []
    (recipe.folder / "downloads" / "corpus").rmdir()
    recipe.run("--stage", "-1", "--stop-stage", "-1")
    assert recipe.calls() == [["python", "download", "downloads/corpus"]]


def test_a_failing_command_stops_the_run_and_names_its_stage(recipe: Recipe) -> None:
    recipe.replace_torchrun("exit 7")
    done = recipe.run("--stage", "2", "--ngpu", "2")
    assert done.returncode == 7
    assert (
        "stage 3 (train) failed; after fixing the cause, the same command continues from here"
    ) in done.stderr
    assert [call[2] for call in recipe.calls()] == ["asrtool.bin.make_vocab"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_its_children(
    recipe: Recipe, sent: signal.Signals, status: int
) -> None:
    recipe.replace_torchrun("sleep 300 & echo ready; wait")
    command = [str(recipe.folder / "run.sh"), "--stage", "3", "--ngpu", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=recipe.environment(), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert any(line == "ready\n" for line in process.stdout)
        process.send_signal(sent)
        # returns when the last process that holds the pipe is gone
        _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert "stage 3 (train) interrupted" in errors


# -- the top of the tree ------------------------------------------------------


def top(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "run.sh"), *options], capture_output=True, text=True, cwd="/")


def test_the_top_command_lists_recipes_and_suggests_one() -> None:
    listed = top("--help")
    assert listed.returncode == 0
    assert {"librispeech", "fsdd"} <= set(re.findall(r"^  (\w+) ", listed.stdout, re.M))
    wrong = top("librispech", "--stage", "3")
    assert (wrong.returncode, "did you mean librispeech?" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("name", ["librispeech", "fsdd"])
def test_the_shipped_recipes_explain_their_options(name: str) -> None:
    done = top(name, "--help")
    assert done.returncode == 0
    assert "--train-config" in done.stdout


def test_every_shell_file_is_clean_for_shellcheck() -> None:
    candidates = [ROOT / "run.sh", *(ROOT / ".ci").iterdir()]
    for folder in ("egs", "tests", "tools", "utils"):
        candidates += (ROOT / folder).rglob("*.sh")
    scripts = [
        str(path.relative_to(ROOT))
        for path in candidates
        if path.is_file() and "downloads" not in path.parts
    ]
    assert len(scripts) >= 10
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    done = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR:.", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_users_own_modules_reach_every_command_that_needs_them(recipe: Recipe) -> None:
    folder = recipe.folder / "mine"
    folder.mkdir()
    options = ("--stage", "1", "--stop-stage", "4", "--ngpu", "0", "--ranks", "1", "--nj", "1")
    assert recipe.run(*options, "--imports", "a.b c", "--import-from", "mine").returncode == 0
    for call in recipe.calls():
        command = next(word for word in call if word.startswith("asrtool.bin."))
        reads = command.removeprefix("asrtool.bin.") in ("extract_features", "train", "decode")
        assert ("--import-from" in call) == reads
        named = [call[at + 1] for at, word in enumerate(call) if word == "--import"]
        assert named == (["a.b", "c"] if "decode" in command else [])
