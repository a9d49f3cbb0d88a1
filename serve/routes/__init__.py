"""The gateway's routes, one file a noun. Each reads a request, calls one function below, and shapes the answer."""
