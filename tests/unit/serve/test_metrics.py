"""Metrics: what is counted can be read by Prometheus, beside what every vLLM server says of itself."""

from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import Metrics

OF_VLLM = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 11.0
# HELP vllm:e2e_request_latency_seconds Histogram of e2e request latency in seconds.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{engine="0",le="1.0",model_name="m"} 2.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 2.0
vllm:e2e_request_latency_seconds_count{engine="0",model_name="m"} 2.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m"} 1.5
"""


def read(text: bytes) -> dict[tuple[str, str], float]:
    """Return every sample by its name and its server."""
    families = text_string_to_metric_families(text.decode())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, sample.labels.get("server", "")): sample.value for sample in samples}


def test_what_servers_say_is_passed_on_with_their_address() -> None:
    text = Metrics().render({"unix:/a": OF_VLLM, "unix:/b": OF_VLLM.replace(" 3.0", " 4.0")})
    assert text.decode().count("# TYPE vllm:num_requests_waiting gauge") == 1
    samples = read(text)
    assert samples["vllm:num_requests_waiting", "unix:/a"] == 3
    assert samples["vllm:num_requests_waiting", "unix:/b"] == 4
    assert samples["vllm:generation_tokens_total", "unix:/b"] == 11
    assert samples["vllm:e2e_request_latency_seconds_sum", "unix:/a"] == 1.5


def test_tokens_and_searches_are_counted() -> None:
    metrics = Metrics()
    metrics.count_tokens("m", {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12})
    metrics.count_tokens("m", None)
    metrics.count_tokens("m", {})
    metrics.time_search({"lexical": 2.0, "dense": 4.0})
    value = metrics.registry.get_sample_value
    assert value("loam_tokens_total", {"model": "m", "kind": "prompt"}) == 5
    assert value("loam_tokens_total", {"model": "m", "kind": "completion"}) == 7
    assert value("loam_retrieval_seconds_sum", {"stage": "dense"}) == 0.004


def test_two_gateways_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.running.inc()
    assert other.registry.get_sample_value("loam_requests_running") == 0
