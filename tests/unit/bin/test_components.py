from __future__ import annotations

import pytest

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


def test_one_kind_can_be_asked_for_and_a_typo_is_answered(capsys):
    components.main(["loss"])
    assert capsys.readouterr().out.startswith("loss\n")
    with pytest.raises(ValueError, match="no kind 'los'; did you mean 'loss'"):
        components.main(["los"])
