"""Data sets in the formats of other toolkits become Kaldi data directories."""
