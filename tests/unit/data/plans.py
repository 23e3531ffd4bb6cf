"""A digest of the batches of a plan, for tests that hold what a seed and an epoch always gave."""

from __future__ import annotations

import hashlib
import json

from asrtool.data.sampler import BatchPlan


def digest(plan: BatchPlan, epochs: int = 3) -> str:
    """Of all batches of some epochs, and of how three ranks divide the first ones."""
    batches = [[list(batch) for batch in plan.epoch(number)] for number in range(epochs)]
    cuts = [plan.slices(batch, rank, 3) for batch in batches[0][:20] for rank in range(3)]
    return hashlib.sha256(json.dumps([batches, cuts]).encode()).hexdigest()[:16]
