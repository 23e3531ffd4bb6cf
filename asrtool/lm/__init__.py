"""n-gram language models from text."""
