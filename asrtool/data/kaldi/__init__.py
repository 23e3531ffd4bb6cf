"""Kaldi data directories: reading, writing, checking, repairing and transforming them."""
