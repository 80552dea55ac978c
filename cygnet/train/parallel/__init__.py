"""How the engine spreads over processes: one interface, one file for each way."""
