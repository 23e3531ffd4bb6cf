"""Kaldi data directories, audio, features, tokenizers, augmentation, batches."""
