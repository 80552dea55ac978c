"""How good a model is: bits per byte, checkable rules, preference, and the report of a run."""
