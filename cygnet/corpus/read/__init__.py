"""Files of any kind, from anywhere, as documents; what cannot be read is counted and named."""
