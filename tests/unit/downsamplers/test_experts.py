from __future__ import annotations

import torch
from torch.nn import functional as F

from asrtool.downsamplers import Experts, ExpertsConfig
from asrtool.losses import LOSSES
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

DIM, VOCABULARY, EXPERTS = 6, 5, 3


def build() -> Experts:
    torch.manual_seed(0)
    config = ExpertsConfig(experts=EXPERTS, dim=4)
    return Experts(config, dim_in=DIM, dim_out=DIM, vocab_size=VOCABULARY).double().eval()


def frames(lengths: tuple[int, ...]) -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.stack(
        [torch.randn(one, DIM, generator=generator, dtype=torch.float64) for one in lengths]
    )


def test_frames_are_the_mixture_of_the_experts():
    experts, inputs = build(), frames((7, 1, 4))
    output = experts(inputs)
    for row, size in enumerate(inputs.lengths.tolist()):
        for t in range(size):
            x = inputs.data[row, t]
            normed = experts.norm(x)
            routing = experts.router(normed)
            gates = routing.float().softmax(0).double()
            expected = x.clone()
            for k in range(EXPERTS):
                rows = slice(4 * k, 4 * k + 4)
                weight, bias = experts.up_proj.weight[rows], experts.up_proj.bias[rows]
                own = F.silu(weight @ normed + bias) @ experts.down_proj[k]
                expected += gates[k] * own
                logits = (x + own) @ experts.head_weight[k] + experts.head_bias[k]
                heard = output.taps["expert_ctc"].data[row, t].unflatten(0, (EXPERTS, -1))[k]
                torch.testing.assert_close(heard, logits)
            torch.testing.assert_close(output.frames.data[row, t], expected)
            torch.testing.assert_close(output.taps["accent"].data[row, t], routing)


def case(routing: torch.Tensor | None = None) -> tuple[ModelOutput, Batch]:
    output = build()(frames((9, 6, 8)))
    targets = Padded.stack([torch.tensor(row) for row in ([1, 2, 2], [3], [4, 1, 3, 2])])
    heads = dict(output.taps)
    if routing is not None:
        heads["accent"] = Padded(routing, heads["accent"].lengths)
    encoder = EncoderOutput(frames=output.frames, positions=output.positions)
    batch = Batch(ids=tuple("abc"), inputs=output.frames, targets=targets)
    return ModelOutput(encoder=encoder, heads=heads), batch


def test_each_expert_counts_as_much_as_it_is_used():
    outputs, batch = case()
    loss = LOSSES.build(LOSSES.config_type("expert_ctc")(weight=1.0), eos=VOCABULARY)
    logits, lengths = outputs.head("expert_ctc")
    shares = outputs.head("accent").data.softmax(-1)
    expected = torch.zeros(3, dtype=torch.float64)
    for row, size in enumerate(lengths.tolist()):
        for k in range(EXPERTS):
            log_probs = logits[row, :size].unflatten(1, (EXPERTS, -1))[:, k].log_softmax(-1)
            target = batch.targets.unpad()[row]
            own = F.ctc_loss(log_probs, target, [size], [len(target)], reduction="sum")
            expected[row] += shares[row, :size, k].mean() * own
    torch.testing.assert_close(loss(outputs, batch), expected.float(), atol=1e-5, rtol=1e-5)


def test_the_routing_is_drawn_to_the_expert_that_reads_best():
    routing = torch.zeros(3, 9, EXPERTS, requires_grad=True)
    outputs, batch = case(routing)
    loss = LOSSES.build(LOSSES.config_type("expert_ctc")(weight=1.0), eos=VOCABULARY)
    loss(outputs, batch).sum().backward()
    logits = outputs.head("expert_ctc").data.unflatten(2, (EXPERTS, -1)).log_softmax(-1)
    for row, size in enumerate((9, 6, 8)):
        target = batch.targets.unpad()[row]
        losses = [
            F.ctc_loss(logits[row, :size, k], target, [size], [len(target)], reduction="sum")
            for k in range(EXPERTS)
        ]
        best = torch.stack(losses).argmin().item()
        assert routing.grad[row].sum(0).argmin().item() == best
