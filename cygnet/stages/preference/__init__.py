"""Learning from what people prefer: pairs, labels, ratings."""
