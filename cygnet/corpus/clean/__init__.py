"""What is done to a text, and what is measured on it, before it is learnt."""
