"""Tensor blocks: plain tensors and masks, no registry, no YAML."""
