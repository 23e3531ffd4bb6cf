"""docs/decoding.md: its configs are read, its code runs, its formulas are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from asrtool import config, searchers
from asrtool.experiment import DecodeConfig
from asrtool.searchers import beam, hotwords, ngram, rescoring
from asrtool.searchers.ctc import prefix_beam, scorer
from asrtool.searchers.transducer import beam as transducer_beam

PAGE = (Path(__file__).parents[3] / "docs/decoding.md").read_text(encoding="utf-8")
MODULES = (beam, prefix_beam, scorer, hotwords, ngram, rescoring, transducer_beam)


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_printed_config_is_read(text):
    assert config.decode(DecodeConfig, yaml.compose(text)).searcher


@pytest.mark.parametrize("text", blocks("python"))
def test_printed_code_runs(text, capsys):
    exec(compile(text, "docs/decoding.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_formula_is_one_of_the_code():
    code = "\n".join(module.__doc__ for module in MODULES)
    lines = {" ".join(line.split()) for line in code.splitlines()}
    printed = [" ".join(line.split()) for block in blocks("") for line in block.splitlines()]
    assert len(printed) > 15 and not [line for line in printed if line not in lines]


def test_every_searcher_is_in_the_table():
    for name in searchers.SEARCHERS.names():
        assert f"| `{name}` |" in PAGE
