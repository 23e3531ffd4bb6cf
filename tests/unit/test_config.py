from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args, get_type_hints

import pytest
import yaml

from asrtool import config, experiment
from asrtool.config import ConfigError
from asrtool.encoders import ConformerConfig
from asrtool.registry import Bounds, Registry, bounds_of

SHAPES: Registry = Registry("shape")


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    side: float
    mode: Literal["plain", "round"] = "plain"


@dataclass(frozen=True, kw_only=True)
class CircleConfig:
    radius: float = 1.0


@SHAPES.register("square", SquareConfig)
class Square:
    def __init__(self, config, *, scale):
        self.area = scale * config.side**2


@SHAPES.register("circle", CircleConfig)
class Circle:
    def __init__(self, config, *, scale):
        self.area = scale * 3 * config.radius**2


@dataclass(frozen=True, kw_only=True)
class Inner:
    deep: bool = False
    range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    lr: float
    shape: Annotated[object, SHAPES]
    inner: Inner = field(default_factory=Inner)
    layers: dict[int, str] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr must be above 0")


def load(tmp_path, text, overrides=(), name="train.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return config.decode(Outer, config.override(config.read(path), overrides))


def test_types_come_from_the_dataclass_and_not_from_yaml(tmp_path):
    read = load(tmp_path, "lr: 1e-3\nshape: {type: circle, radius: 2}\nlayers: {0: no}\nname: on\n")
    assert (read.lr, read.shape, read.layers, read.name) == (
        0.001,
        CircleConfig(radius=2.0),
        {0: "no"},
        "on",
    )


def test_a_component_is_built_from_its_config(tmp_path):
    assert (
        SHAPES.build(load(tmp_path, "lr: 1\nshape: {type: square, side: 2}").shape, scale=10).area
        == 40
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lr: 1\nshap: {type: circle}",
            "train.yaml:2: shap: unknown key for Outer; did you mean 'shape'?",
        ),
        (
            "lr: 1\nshape: {type: circel}",
            "train.yaml:2: shape.type: unknown shape 'circel'; did you mean 'circle'?",
        ),
        ("lr: 1\nshape: {type: square}", "train.yaml:2: shape: SquareConfig is missing: side"),
        (
            "lr: 1\nshape: {side: 1}",
            "train.yaml:2: shape: missing 'type'; valid shape types: circle, square",
        ),
        (
            "lr: 1\nshape:\n  type: square\n  side: 1\n  mode: rond",
            "train.yaml:5: shape.mode: 'rond' is not allowed; did",
        ),
        ("lr: 1\nlr: 2\nshape: {type: circle}", "train.yaml:2: lr: key given twice"),
        ("lr: fast\nshape: {type: circle}", "train.yaml:1: lr: expected a number, got 'fast'"),
        (
            "lr: 1\nshape: {type: circle}\ninner: {deep: yes}",
            "train.yaml:3: inner.deep: expected true or false, got 'yes'",
        ),
        (
            "lr: 1\nshape: {type: circle}\ninner: {range: [1]}",
            "train.yaml:3: inner.range: expected 2 values, got 1",
        ),
        ("lr: -1\nshape: {type: circle}", "train.yaml:1: top level: lr must be above 0"),
        (
            "lr: [1]\nshape: {type: circle}",
            "train.yaml:1: lr: expected a number, not a list or mapping",
        ),
        ("lr: 1\nshape: circle", "train.yaml:2: shape: expected a mapping"),
        (
            "shape: {type: circle}\nextends: other.yaml",
            "other.yaml'; paths are relative to the folder of this file",
        ),
        (
            "shape: {type: circle}\nextends: train.yaml",
            "train.yaml:2: extends: 'train.yaml' extends itself",
        ),
    ],
)
def test_a_mistake_stops_with_file_line_key_and_advice(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


def test_overrides_merge_last_and_name_themselves_in_errors(tmp_path):
    text = "lr: 1\nshape: {type: square, side: 1}\n"
    assert load(tmp_path, text, ["shape.side=3", "inner={deep: true}"]).shape.side == 3
    with pytest.raises(
        ConfigError, match="^--set inner.depe=true: inner.depe: unknown key for Inner"
    ):
        load(tmp_path, text, ["inner.depe=true"])
    with pytest.raises(ValueError, match="expected key.key=value"):
        load(tmp_path, text, ["lr"])


def test_a_file_extends_one_of_another_folder_which_errors_name_plainly(tmp_path):
    (tmp_path / "method").mkdir()
    child = tmp_path / "method" / "train.yaml"
    child.write_text("extends: ../base.yaml\nlr: 2\n")
    (tmp_path / "base.yaml").write_text("shape: {type: circle}\nlr: 1\n")
    assert config.decode(Outer, config.read(child)).lr == 2
    (tmp_path / "base.yaml").write_text("shape: {type: cube}\n")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/base.yaml:1: shape.type: "):
        config.decode(Outer, config.read(child))
    (tmp_path / "base.yaml").write_text("extends: method/train.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        config.read(child)


def test_changing_a_type_replaces_the_whole_component(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "lr: 1\nshape: {type: square, side: 1}\ninner: {deep: true}\n"
    )
    read = load(tmp_path, "extends: base.yaml\nshape: {type: circle}\n")
    assert read.shape == CircleConfig() and read.inner.deep and read.lr == 1


def test_what_is_written_is_read_back_unchanged(tmp_path):
    read = load(
        tmp_path,
        "lr: 1e-5\nshape: {type: square, side: 2}\nlayers: {3: x}\ninner: {range: [0.5, 2]}\n",
    )
    from asrtool.experiment import dump

    assert load(tmp_path, dump(config.encode(Outer, read)), name="again.yaml") == read


def test_a_config_must_derive_from_the_base_of_its_registry() -> None:
    class Base:
        pass

    class Stranger:
        pass

    registry: Registry = Registry("thing", Base)
    with pytest.raises(TypeError, match="Stranger, the config of thing 'x', must derive from"):
        registry.register("x", Stranger)(str)
    assert registry.names() == []


def test_a_name_or_config_is_registered_once():
    registry: Registry = Registry("thing")
    registry.register("a", SquareConfig)(Square)
    with pytest.raises(ValueError, match="already registered"):
        registry.register("a", CircleConfig)(Circle)
    with pytest.raises(ValueError, match="already builds"):
        registry.register("b", SquareConfig)(Square)


@pytest.mark.parametrize("text", [".inf", "inf", "+.Inf"])
def test_infinity_is_a_number_however_it_is_written(tmp_path, text):
    assert config.decode(float, yaml.compose(text)) == float("inf")
    assert config.decode(float, yaml.compose("-.inf")) == -float("inf")
    with pytest.raises(ConfigError, match="train.yaml:1: lr: expected a finite number, got inf"):
        load(tmp_path, f"lr: {text}\nshape: {{type: circle}}")


@pytest.mark.parametrize(
    ("bounds", "value", "problem"),
    [
        (Bounds(least=0, below=1), 1.0, "expected at least 0 and below 1, got 1.0"),
        (Bounds(least=0, below=1), -0.1, "expected at least 0 and below 1, got -0.1"),
        (Bounds(least=0, most=1), 1.1, "expected at least 0 and at most 1, got 1.1"),
        (Bounds(least=1), 0, "expected at least 1, got 0"),
        (Bounds(least=1), (3, 0), "expected at least 1, got [3, 0]"),
        (Bounds(ordered=True), (20.0, 5.0), "expected [lowest, highest], got [20.0, 5.0]"),
        (Bounds(), float("nan"), "expected a finite number, got nan"),
        (Bounds(infinite=True), float("nan"), "expected a finite number, got nan"),
        (Bounds(), (0.9, float("inf")), "expected a finite number, got [0.9, inf]"),
        (Bounds(), {"ctc": float("inf")}, "expected a finite number, got {'ctc': inf}"),
        (Bounds(least=0, most=1), 1.0, None),
        (Bounds(least=1), False, None),
        (Bounds(least=1), None, None),
        (Bounds(least=1), "sum", None),
        (Bounds(least=1, infinite=True), float("inf"), None),
        (Bounds(), (0.98, 0.9), None),
    ],
)
def test_numbers_that_cannot_be_meant(bounds, value, problem):
    assert bounds.problem(value) == problem


def configs(kind: object, found: dict[type, None]) -> dict[type, None]:
    """Adds every dataclass that a config of the type `kind` may hold."""
    if isinstance(kind, Registry):
        for name in kind.names():
            configs(kind.config_type(name), found)
    elif dataclasses.is_dataclass(kind) and kind not in found:
        found[kind] = None
        for hint in get_type_hints(kind, include_extras=True).values():
            configs(hint, found)
    for inner in get_args(kind):
        configs(inner, found)
    return found


def test_every_default_lies_within_the_bounds_of_its_field():
    kinds = configs(experiment.DecodeConfig, configs(experiment.TrainConfig, {}))
    assert len(kinds) > 50
    bounded = [(kind, one) for kind in kinds for one in dataclasses.fields(kind)]
    for kind, one in bounded:
        if one.default is not dataclasses.MISSING:
            problem = bounds_of(one).problem(one.default)
            assert problem is None, f"{kind.__name__}.{one.name}: {problem}"
    assert sum(bounds_of(one) != Bounds() for _, one in bounded) > 70


def test_bounds_are_those_of_the_field_not_of_its_name(tmp_path):
    (tmp_path / "a.yaml").write_text("num_layers: 2\ndropout: 1\n")
    with pytest.raises(ConfigError, match=r"a.yaml:2: dropout: expected at least 0 and below 1"):
        config.decode(ConformerConfig, config.read(tmp_path / "a.yaml"))

    @dataclass(frozen=True, kw_only=True)
    class Own:
        dropout: float = 0.5  # another's, which may mean anything by it

    (tmp_path / "b.yaml").write_text("dropout: 3\n")
    assert config.decode(Own, config.read(tmp_path / "b.yaml")).dropout == 3


def test_one_field_may_stand_for_a_dataclass_and_a_field_may_be_a_number_or_a_word(tmp_path):
    from asrtool.encoders import Data2vecConfig

    (tmp_path / "a.yaml").write_text("{size: tiny, tuning: frozen, layer: sum}")
    found = config.decode(Data2vecConfig, config.read(tmp_path / "a.yaml"))
    assert (found.tuning.mode, found.tuning.rank, found.layer) == ("frozen", 8, "sum")
    (tmp_path / "b.yaml").write_text("{size: tiny, layer: 2}")
    plain = config.decode(Data2vecConfig, config.read(tmp_path / "b.yaml"))
    assert plain.layer == 2 and "tuning" not in config.encode(Data2vecConfig, plain)
    (tmp_path / "c.yaml").write_text("{size: tiny, layer: last}")
    with pytest.raises(config.ConfigError, match="layer: expected an integer or 'sum', got 'last'"):
        config.decode(Data2vecConfig, config.read(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("lr: 1é".encode("latin-1"), "expected UTF-8, but byte 5 is not"),
        (b"lr: " + b"[" * 1_500, "nested too deeply"),
        (b"{" * 1_500, "nested too deeply"),
        (b"lr: 1\nshape: [1,", "train.yaml:2: not YAML: "),
        (b"lr: \x00", "not YAML: "),
        (b"lr: *nothing", "train.yaml:1: not YAML: found undefined alias"),
    ],
)
def test_what_is_no_yaml_is_one_sentence(tmp_path, content, problem):
    (tmp_path / "train.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        config.read(tmp_path / "train.yaml")


def test_an_override_may_be_no_yaml_either(tmp_path):
    for value in ("[" * 1_500, "[1,"):
        with pytest.raises(ValueError, match="--set lr=.*the value is not YAML"):
            load(tmp_path, "lr: 1\nshape: {type: circle}", [f"lr={value}"])
