"""The model: a Qwen3 decoder. It knows nothing of training or of how work is spread."""
