"""From a model to text: sampling, decoding from a cache, and the chat in the terminal."""
