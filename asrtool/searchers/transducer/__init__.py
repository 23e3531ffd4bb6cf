"""Search with a transducer (Graves, arXiv 1211.3711): greedy, and beam search."""
