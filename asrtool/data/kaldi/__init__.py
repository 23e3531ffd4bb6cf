"""Kaldi data directories: reading, writing, checking, mending and transforming them."""
