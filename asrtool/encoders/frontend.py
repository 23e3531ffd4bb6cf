"""An encoder in front of another: `frontend` of a Conformer, a Qifusion-Net or a `cnn`.

Any encoder that reads samples can be one. The encoder behind it reads samples (B, T), or frames
(B, S, stored_dim) that the front end has computed before.
"""

from __future__ import annotations

from asrtool.encoders.base import ENCODERS, Encoder, check_encoder
from asrtool.types import Padded


def put_in_front(
    encoder: Encoder, config: object | None, input_dim: int, vocab_size: int, frame_shift: float
) -> tuple[int, float]:
    """Build `encoder.frontend`; what it asks of models, `encoder` asks of them too.

    Returns the width of its frames and the seconds between them; without a front end those of the
    inputs.
    """
    encoder.frontend = None
    if config is None:
        return input_dim, frame_shift
    frontend = ENCODERS.build(
        config, input_dim=input_dim, vocab_size=vocab_size, frame_shift=frame_shift
    )
    check_encoder(frontend)
    if not frontend.reads_samples:
        name = ENCODERS.name_of(config)
        raise ValueError(f"frontend: encoder {name} reads features, a front end reads samples")
    encoder.frontend = frontend
    encoder.reads_samples, encoder.max_seconds = True, frontend.max_seconds
    encoder.frozen = frozenset(f"frontend.{key}" for key in frontend.frozen)
    encoder.pretrained = frozenset(f"frontend.{key}" for key in frontend.pretrained)
    encoder.sources = tuple(source.below("frontend") for source in frontend.sources)
    return frontend.dim, frontend.frame_shift


def through(frontend: Encoder | None, inputs: Padded) -> Padded:
    """The frames of the front end; without one, the inputs."""
    if frontend is None:
        return inputs
    computed = inputs.data.ndim == 3
    return (frontend.from_stored if computed else frontend)(inputs).frames
