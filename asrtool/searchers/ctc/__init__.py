"""CTC search: best path, prefix beam search, and prefix probabilities for joint decoding."""
