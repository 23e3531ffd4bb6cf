"""A shut gate leaves pre-trained models as they are; what Echo-MSA computes is what its definition
says.
"""

from __future__ import annotations

import copy

import pytest
import torch

from asrtool.encoders import ENCODERS, EchoConfig, echo
from asrtool.types import Padded
from tests.toy_ssl import FAMILIES, make, save, waveforms

CASES = [(name, False) for name in FAMILIES] + [
    (name, True) for name in FAMILIES if name != "data2vec"
]
every_model = pytest.mark.parametrize("name, layer_norm", CASES)
SHUT = [
    {"gate_fixed": 1.0},
    {"gate_bias": 200.0, "gate": "channel", "gate_input": "outputs"},
    {"gate_bias": 200.0, "mode": "heads", "windows": (4, 16)},
    {"gate_bias": 200.0, "mode": "layers", "windows": (4, 16, 64), "projections": "fresh"},
    {"gate_bias": 200.0, "mode": "single", "windows": (4,), "projections": "shared"},
]


def wrap(model, config: EchoConfig):
    """Echo-MSA in all layers of a model of `transformers`; returns the model."""
    echo.wrap(model.encoder.layers, config)
    return model


def masked_batch() -> dict[str, torch.Tensor]:
    rows = Padded.stack(waveforms(16000, 9000, 5000))
    return {"input_values": rows.data, "attention_mask": rows.mask.long()}


@pytest.mark.parametrize(
    "name, layer_norm, options",
    [(*case, {"gate_bias": 200.0}) for case in CASES]
    + [("data2vec", False, options) for options in SHUT],
)
def test_with_the_gate_shut_a_wrapped_model_is_the_unwrapped_one(name, layer_norm, options):
    model, batch = make(name, layer_norm), masked_batch()
    wrapped = wrap(copy.deepcopy(model), EchoConfig(**options))
    with torch.inference_mode():
        for inputs in (batch, {"input_values": batch["input_values"][:1]}):
            expected = model(**inputs).last_hidden_state
            torch.testing.assert_close(
                wrapped(**inputs).last_hidden_state, expected, atol=1e-5, rtol=0
            )
    kept = dict(wrapped.named_parameters())
    for key, value in model.named_parameters():
        assert torch.equal(kept[key.replace(".attention.", ".attention.full.")], value)


@every_model
def test_an_open_gate_changes_the_model_and_padding_still_does_not(name, layer_norm, tmp_path):
    folder = save(make(name, layer_norm), tmp_path)

    def frames(attention: EchoConfig | None, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = ENCODERS.config_type(name)(weights=str(folder), attention=attention)
        encoder = (
            ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000).eval().double()
        )
        with torch.inference_mode():
            return encoder(Padded.stack(rows)).frames.unpad()

    rows = [row.double() for row in waveforms(16000, 9000, 5000)]
    open_gate = EchoConfig(windows=(4,), gate_bias=0.0)
    plain, shut, mixed = (
        frames(each, rows) for each in (None, EchoConfig(gate_fixed=1.0), open_gate)
    )
    torch.testing.assert_close(shut, plain, atol=1e-12, rtol=0)
    assert (mixed[0] - plain[0]).abs().max() > 1e-3
    for row, together in zip(rows, mixed, strict=True):
        torch.testing.assert_close(frames(open_gate, [row])[0], together, atol=1e-10, rtol=0)


def windows_alone(**options) -> tuple[torch.Tensor, torch.nn.Module, torch.Tensor]:
    """Output of a layer's attention whose gate is open to its windows alone, that attention, and
    its input.
    """
    model = make("data2vec")
    wrap(model, EchoConfig(gate_fixed=0.0, **options))
    attention = model.encoder.layers[1].attention
    x = torch.randn(2, 200, 24, generator=torch.Generator().manual_seed(0))
    return attention(x)[0], attention, x


def test_adaptive_windows_driven_wide_open_are_the_fixed_window():
    torch.manual_seed(0)
    adaptive, *_ = windows_alone(windows=(16,), span_bias=200.0)
    torch.manual_seed(0)
    fixed, *_ = windows_alone(mode="single", windows=(16,))
    torch.testing.assert_close(adaptive, fixed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ramp", [0.01, 0.125, 1.0])
def test_adaptive_windows_driven_to_one_frame_are_the_frames_own_value(ramp):
    found, attention, x = windows_alone(windows=(16,), span_bias=-200.0, ramp=ramp)
    expected = attention.full.out_proj(attention.full.v_proj(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [4, 16, 64, 256])
def test_gradients_reach_what_predicts_the_spans(window):
    found, attention, _ = windows_alone(windows=(window,))
    (found * torch.randn_like(found)).sum().backward()
    predict = attention.echo.spans.predict
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in predict.parameters())
    assert (predict.bias.grad != 0).all()  # every head


def test_heads_have_the_windows_of_their_group():
    def value(mode: str, windows: tuple[int, ...]) -> torch.Tensor:
        torch.manual_seed(0)
        heads = []
        _, attention, x = windows_alone(mode=mode, windows=windows)
        hook = attention.echo.o_proj.register_forward_pre_hook(
            lambda module, inputs: heads.append(inputs[0])
        )
        attention(x)
        hook.remove()
        return heads[0].unflatten(-1, (4, 6))

    mixed = value("heads", (3, 16, 40))  # 4 heads: two with 3 frames, then one each
    for head, window in enumerate((3, 3, 16, 40)):
        torch.testing.assert_close(
            mixed[:, :, head], value("single", (window,))[:, :, head], atol=1e-6, rtol=0
        )


def test_layers_have_windows_that_grow_with_depth():
    model = wrap(
        make("hubert", num_hidden_layers=6), EchoConfig(mode="layers", windows=(4, 16, 64))
    )
    assert [layer.attention.echo.windows for layer in model.encoder.layers] == [
        (4,),
        (4,),
        (16,),
        (16,),
        (64,),
        (64,),
    ]


def test_some_layers_only():
    model = wrap(make("hubert"), EchoConfig(layers=(0, 2)))
    assert [hasattr(layer.attention, "echo") for layer in model.encoder.layers] == [
        True,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="no layer 3 among 3"):
        wrap(make("hubert"), EchoConfig(layers=(3,)))


@pytest.mark.parametrize("projections", ["copy", "shared", "fresh"])
def test_projections_are_copied_shared_or_fresh(projections):
    model = make("wav2vec2")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrap(model, EchoConfig(projections=projections))
    attention, name = model.encoder.layers[0].attention, "encoder.layers.0.attention.q_proj.weight"
    own = dict(attention.echo.named_parameters())
    if projections == "shared":
        assert set(own) == {"spans.predict.weight", "spans.predict.bias"}
    else:
        assert torch.equal(own["q_proj.weight"], before[name]) == (projections == "copy")
    assert torch.equal(attention.full.q_proj.weight, before[name])


@pytest.mark.parametrize(
    "options, says",
    [
        ({"windows": ()}, "at least 1 frame"),
        ({"windows": (0,)}, "at least 1 frame"),
        ({"windows": (4, 16)}, "adaptive takes one window"),
        ({"gate_fixed": 1.5}, "between 0 and 1"),
        ({"ramp": 0.0}, "ramp must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        EchoConfig(**options)


def test_more_windows_than_heads_are_refused():
    with pytest.raises(ValueError, match="5 windows for 4 heads"):
        wrap(make("hubert"), EchoConfig(mode="heads", windows=(1, 2, 3, 4, 5)))
