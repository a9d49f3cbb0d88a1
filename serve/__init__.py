"""Serving: the vLLM process, the OpenAI-compatible gateway, and answers grounded in the user's documents."""
