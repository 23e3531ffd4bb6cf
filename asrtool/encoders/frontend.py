"""An encoder before another one: the `frontend` of a Conformer, a Qifusion-Net or a `cnn`.

Any encoder of samples can be a front end. The whole then reads samples (B, T), or frames
(B, S, stored_dim) that the front end computed in stage 1.
"""

from __future__ import annotations

from asrtool.encoders.base import ENCODERS, Encoder, check_encoder
from asrtool.types import Padded


def put_in_front(
    encoder: Encoder, config: object | None, input_dim: int, vocab_size: int, frame_shift: float
) -> tuple[int, float]:
    """Build `encoder.frontend`; `encoder` takes over what the front end demands of a model.

    Returns width and shift in seconds of the front end's frames; without a front end, those of the
    inputs. Raises `ValueError` for a front end that reads features.
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
    # models see `encoder` alone, so the front end's limits and weights become its own
    encoder.reads_samples, encoder.max_seconds = True, frontend.max_seconds
    encoder.frozen = frozenset(f"frontend.{key}" for key in frontend.frozen)
    encoder.pretrained = frozenset(f"frontend.{key}" for key in frontend.pretrained)
    encoder.sources = tuple(source.below("frontend") for source in frontend.sources)
    return frontend.dim, frontend.frame_shift


def through(frontend: Encoder | None, inputs: Padded) -> Padded:
    """The frames of the front end; without one, the inputs."""
    if frontend is None:
        return inputs
    computed = inputs.data.ndim == 3  # samples are (B, T), stored frames (B, S, stored_dim)
    return (frontend.from_stored if computed else frontend)(inputs).frames
