"""A model behind HTTP: an OpenAI-compatible API, and a chat in the browser."""
