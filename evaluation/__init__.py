"""Evaluation: metrics, the four-way verdict and the cost model, measured through the served endpoint."""
