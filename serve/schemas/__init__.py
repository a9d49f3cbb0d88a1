"""The shapes of requests: an allow-list with ranges, so that nothing else ever reaches vLLM."""
