"""The transformer of an embedder: padded token numbers in, one vector for each token out.

torch runs it on any device; OpenVINO on a CPU, where it takes a third of torch's time for a query and two thirds for a
batch (docs/decisions/0054). Both are held to one test. Does not know texts, pooling or windows.
"""

import logging
import warnings
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from retrieval.config import Dtype, EncoderEngine

logger = logging.getLogger(__name__)

PRECISIONS = {Dtype.float32: "f32", Dtype.int8: "f32", Dtype.bfloat16: "bf16", Dtype.float16: "f16"}
"""What OpenVINO calls the type that activations are kept in."""
LARGEST_INT8 = 127


class TokenEncoder(Protocol):
    """What runs a transformer."""

    def encode(self, ids: Any, mask: Any) -> Any:
        """Return what the last layer says of each token.

        Args:
            ids: (texts, tokens) int64 torch.Tensor on the CPU, padded.
            mask: (texts, tokens) int64 torch.Tensor, 1 for a token and 0 for padding.

        Returns:
            (texts, tokens, hidden) torch.Tensor of floats, on the encoder's device.
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
    """Return what `auto` stands for: OpenVINO on a CPU where it is installed, else torch."""
    if engine is not EncoderEngine.auto:
        return engine
    return EncoderEngine.torch if is_cuda or find_spec("openvino") is None else EncoderEngine.openvino


class TorchEncoder:
    """The model's own first module."""

    def __init__(self, model: Any) -> None:
        """Take the transformer of a SentenceTransformer."""
        self._transformer = model[0]
        self._device = model.device

    def encode(self, ids: Any, mask: Any) -> Any:
        """Return (texts, tokens, hidden) on the model's device."""
        import torch

        with torch.inference_mode():
            features = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
            return self._transformer(features)["token_embeddings"]


class OpenVinoEncoder:
    """The same weights, compiled for this CPU. Takes about a second to make; nothing is written to disk.

    Source: https://docs.openvino.ai, «Convert from PyTorch» and «CPU device» (precision hint, dynamic quantization).
    """

    def __init__(self, model: Any, dtype: Dtype) -> None:
        """Compile the transformer of a SentenceTransformer in float32 on the CPU."""
        import openvino
        import torch

        transformer = model[0].model

        class LastLayer(torch.nn.Module):  # a conversion wants plain tensors out
            def __init__(self) -> None:
                super().__init__()
                self.transformer = transformer

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

        example = torch.ones((2, 8), dtype=torch.int64)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer names every branch that depends on a shape
            graph = openvino.convert_model(LastLayer().eval(), example_input=(example, example))
        if dtype is Dtype.int8:
            round_weights(graph)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": "NO",  # vLLM and the parsers run beside it
        }
        self._compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._request = self._compiled.create_infer_request()

    def encode(self, ids: Any, mask: Any) -> Any:
        """Return (texts, tokens, hidden) float32; it is overwritten by the next call."""
        import torch

        answer = self._request.infer([ids.numpy(), mask.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(answer[0])


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
