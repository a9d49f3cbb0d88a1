"""The transformer of an embedder: padded token numbers in, one vector for each token out.

torch runs it on any device; OpenVINO on a CPU, where it takes a third of torch's time for a query and two thirds for a
batch (docs/decisions/0056). Both are held to one test. Does not know texts, pooling or windows.
"""

import functools
import os
import queue
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Dtype, EncoderEngine

PRECISIONS = {Dtype.float32: "f32", Dtype.int8: "f32", Dtype.bfloat16: "bf16", Dtype.float16: "f16"}
"""What OpenVINO calls the type that activations are kept in."""
LARGEST_INT8 = 127
FEW_CORES = 4
"""Up to so many cores each has a stream of its own: a query then wakes no other thread."""
THREADS_A_STREAM = 4
QUERY_LENGTHS = (16, 24, 32, 48)
"""Tokens, special ones counted, for which a single text has a graph of its own."""


Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token numbers and mask of some texts, (texts, tokens) each, padded; the mask is 1 for a token and 0 for padding."""


class TokenEncoder(Protocol):
    """What runs a transformer. Safe in any thread."""

    @property
    def lanes(self) -> int:
        """How many batches are computed at once."""

    def encode(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Yield what the last layer says of each token, batch by batch.

        Returns:
            (texts, tokens, hidden) torch.Tensor of floats on the encoder's device; valid until the next is asked for.
        """


def open_encoder(model: Any, engine: EncoderEngine, dtype: Dtype) -> TokenEncoder:
    """Return what runs the transformer of a sentence-transformers model.

    Args:
        model: The SentenceTransformer; OpenVINO wants it on the CPU and in float32.
        engine: Which of them, not `auto`.
        dtype: What it computes in, not `auto`.
    """
    if engine is EncoderEngine.openvino:
        return OpenVinoEncoder(model, dtype)
    return TorchEncoder(model)


def pick_engine(engine: EncoderEngine, *, is_cuda: bool) -> EncoderEngine:
    """Return what runs a model: torch on a CUDA card; `auto` on a CPU is OpenVINO where it is installed, else torch."""
    if is_cuda:
        return EncoderEngine.torch
    if engine is not EncoderEngine.auto:
        return engine
    return EncoderEngine.torch if find_spec("openvino") is None else EncoderEngine.openvino


class TorchEncoder:
    """The model's own first module."""

    def __init__(self, model: Any) -> None:
        """Take the transformer of a SentenceTransformer."""
        self._transformer = model[0]
        self._device = model.device
        self.lanes = 1

    def encode(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Yield (texts, tokens, hidden) on the model's device."""
        import torch

        for batch in batches:
            ids, mask = (torch.from_numpy(part).to(self._device) for part in batch)
            with torch.inference_mode():
                states = self._transformer({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
            yield states


class OpenVinoEncoder:
    """The same weights, compiled for this CPU. Takes about a second to make; nothing is written to disk.

    Source: https://docs.openvino.ai, «Convert from PyTorch» and «CPU device» (precision hint, dynamic quantization).
    """

    def __init__(self, model: Any, dtype: Dtype) -> None:
        """Compile the transformer of a SentenceTransformer in float32 on the CPU."""
        import openvino

        graph = _convert(model[0].model, ("input_ids", "attention_mask"), "last_hidden_state")
        if dtype is Dtype.int8:
            round_weights(graph)
        cores = len(os.sched_getaffinity(0))
        streams = max(1, cores // (1 if cores <= FEW_CORES else THREADS_A_STREAM))
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": "NO",  # vLLM and the parsers run beside it
        }
        core = _open_core()
        compiled = core.compile_model(graph, "CPU", settings)
        self._make_tensor = openvino.Tensor
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(streams + 1):  # one more than an ingestion takes, so that a query need not wait for its end
            self._idle.put(compiled.create_infer_request())
        self.lanes = streams
        self._of_length: dict[int, queue.LifoQueue[Any]] = {}
        for length in QUERY_LENGTHS:
            graph.reshape({port: [1, length] for port in graph.inputs})
            requests: queue.LifoQueue[Any] = queue.LifoQueue()
            requests.put(core.compile_model(graph, "CPU", {**settings, "NUM_STREAMS": 1}).create_infer_request())
            self._of_length[length] = requests

    def encode(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Yield (texts, tokens, hidden) float32; several batches are computed at once.

        A single text of a query's length is padded to one of a few lengths, each compiled for itself, and comes back
        without the padding: the general graph would work out every size anew for each new length.
        """
        import torch

        running: deque[Any] = deque()

        def yield_oldest() -> Iterator[Any]:
            running[0].wait()
            yield torch.from_numpy(running[0].get_output_tensor(0).data)
            self._idle.put(running.popleft())

        try:
            for batch in batches:
                is_query = batch[0].shape[0] == 1 and batch[0].shape[1] <= QUERY_LENGTHS[-1]
                while running and (is_query or len(running) == self.lanes):
                    yield from yield_oldest()
                if is_query:
                    yield torch.from_numpy(self._encode_query(*batch))
                    continue
                while True:
                    try:
                        running.append(self._idle.get(block=not running))
                        break
                    except queue.Empty:  # whoever holds one never waits for another
                        yield from yield_oldest()
                for place, part in enumerate(batch):
                    running[-1].set_input_tensor(place, self._make_tensor(part, shared_memory=True))
                running[-1].start_async()
            while running:
                yield from yield_oldest()
        finally:
            for request in running:  # whoever asked has stopped asking
                request.wait()
                self._idle.put(request)

    def _encode_query(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (1, tokens, hidden) of a short text."""
        tokens = ids.shape[1]
        length = next(length for length in QUERY_LENGTHS if length >= tokens)
        requests = self._of_length[length]
        request = requests.get()
        try:
            for place, part in enumerate((ids, mask)):
                padded = np.zeros((1, length), dtype=np.int64)
                padded[:, :tokens] = part
                request.set_input_tensor(place, self._make_tensor(padded, shared_memory=True))
            request.start_async()
            request.wait()
            return np.array(request.get_output_tensor(0).data[:, :tokens], dtype=np.float32)
        finally:
            requests.put(request)


def compile_forward(transformer: Any, inputs: Sequence[str], output: str, dtype: Dtype) -> None:
    """Let OpenVINO compute what a transformers model computes, in place, for whoever calls its `forward`.

    For a model that sentence-transformers drives, with its own batches, masks and heads: a reranker. Texts of one call
    are computed together, on all cores.

    Args:
        transformer: A transformers model in float32 on the CPU.
        inputs: What its tokenizer gives it: `input_ids`, `attention_mask` and, for some, `token_type_ids`.
        output: Which of its outputs is wanted: `last_hidden_state` or `logits`. The others are not computed.
        dtype: What it computes in, not `auto`.
    """
    import openvino
    import torch
    from transformers.utils.generic import ModelOutput

    graph = _convert(transformer, inputs, output)
    if dtype is Dtype.int8:
        round_weights(graph)
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "ENABLE_CPU_PINNING": "NO",
    }
    request = _open_core().compile_model(graph, "CPU", settings).create_infer_request()
    lock = threading.Lock()

    def forward(**features: Any) -> Any:
        with lock:
            parts = [features[name].contiguous().numpy() for name in inputs]  # kept until the request is done
            for place, part in enumerate(parts):
                request.set_input_tensor(place, openvino.Tensor(part, shared_memory=True))
            request.infer()
            computed = torch.from_numpy(np.array(request.get_output_tensor(0).data, dtype=np.float32))
        return ModelOutput({output: computed})

    transformer.forward = forward


def _convert(transformer: Any, inputs: Sequence[str], output: str) -> Any:
    """Return a transformers model as an OpenVINO graph from some of its inputs to one of its outputs."""
    import openvino
    import torch
    import transformers

    class OneOutput(torch.nn.Module):  # a conversion wants plain tensors out
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.transformer(input_ids=input_ids, attention_mask=attention_mask, **more)[output]

    ones = torch.ones((2, 8), dtype=torch.int64)
    example = (ones, ones, torch.zeros_like(ones))[: len(inputs)]
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # tracing reads every property, also those that warn
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer names every branch that depends on a shape
            return openvino.convert_model(OneOutput().eval(), example_input=example)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@functools.cache
def _open_core() -> Any:
    """Return the one core of this process, which lives as long as it does.

    OpenVINO gives the thread that compiles first another stack for signals, and frees it with the core. Dropped in any
    other order or thread it would leave the thread a stack that is gone: the next Ctrl-C would end the process.
    """
    import openvino

    return openvino.Core()


def round_weights(graph: Any) -> int:
    """Keep the weights of a graph's matrix products as int8, one scale for each row; return how many were rounded.

    OpenVINO then rounds the activations as they come (dynamic quantization), where the CPU multiplies int8.
    """
    from openvino import opset13

    rounded = 0
    for node in list(graph.get_ops()):
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or len(constant.get_output_shape(0)) != 2:
            continue
        weights = np.array(constant.get_data(), dtype=np.float32)
        scales = np.abs(weights).max(axis=1, keepdims=True).clip(np.finfo(np.float32).tiny) / LARGEST_INT8
        integers = opset13.constant(np.rint(weights / scales).astype(np.int8))
        product = opset13.multiply(opset13.convert(integers, "f32"), opset13.constant(scales))
        node.input(1).replace_source_output(product.output(0))
        rounded += 1
    return rounded
