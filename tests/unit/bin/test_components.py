from __future__ import annotations

import re
from pathlib import Path

import pytest

import asrtool
from asrtool.bin import components


def test_every_entry_is_listed_with_its_fields_and_a_sentence(capsys):
    components.main([])
    printed = capsys.readouterr().out
    for registry in components.REGISTRIES:
        assert f"\n{registry.kind}\n" in f"\n{printed}"
        for name in registry.names():
            line = next(line for line in printed.splitlines() if line.startswith(f"  {name}: "))
            assert len(line) > len(name) + 10
    assert "    kernel: int = 15" in printed


def test_no_registry_is_left_out():
    sources = Path(asrtool.__file__).parent.rglob("*.py")
    kinds = {
        kind for path in sources for kind in re.findall(r'= Registry\("(\w+)"', path.read_text())
    }
    assert kinds == {registry.kind for registry in components.REGISTRIES}


def test_one_kind_can_be_asked_for_and_a_typo_is_answered(capsys):
    components.main(["loss"])
    assert capsys.readouterr().out.startswith("loss\n")
    with pytest.raises(ValueError, match="no kind 'los'; did you mean 'loss'"):
        components.main(["los"])
