"""Tiny real computations, each in a process of its own.

    python scripts/doctor_probes.py torch|bitsandbytes|faiss|vllm cpu|cuda

A native library that does not fit the processor or the driver kills its process, and so the doctor starts one for each.
Prints one line of what worked; ends with 1 and a reason where the result is wrong. Does not know what is wanted of a
machine.
"""

from core.entry import begin_program

begin_program()

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

ROWS, WIDTH = 64, 256


def probe_torch(device: str) -> str:
    """Multiply two matrices and hold the product against NumPy's in double precision."""
    import numpy as np
    import torch

    generator = np.random.default_rng(7)
    left, right = generator.standard_normal((ROWS, WIDTH)), generator.standard_normal((WIDTH, ROWS))
    product = torch.tensor(left, dtype=torch.float32, device=device) @ torch.tensor(
        right, dtype=torch.float32, device=device
    )
    error = float(np.abs(product.cpu().numpy() - left @ right).max())
    expect(error < 0.1, f"a product of two matrices is off by {error}")
    name = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}" if device == "cuda" else "CPU"
    return f"torch {torch.__version__} ({name}): a matrix product, off by {error:.0e} at most"


def probe_bitsandbytes(device: str) -> str:
    """Round weights to NF4 and back, and multiply with them in four bits."""
    import bitsandbytes
    import torch

    library: Any = bitsandbytes  # matmul_4bit is not on its list of exports
    torch.manual_seed(7)
    weight = torch.randn(WIDTH, WIDTH, device=device)
    packed, state = library.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    again = library.functional.dequantize_4bit(packed, state)
    error = float((again - weight).abs().mean())
    expect(0.01 < error < 0.12, f"NF4 rounds standard normal weights by {error:.3f} on average, wanted about 0.07")
    rows = torch.randn(ROWS, WIDTH, device=device)
    difference = float((library.matmul_4bit(rows, packed.t(), quant_state=state) - rows @ again.t()).abs().max())
    expect(difference < 0.1, f"the product in four bits is off by {difference}")
    return f"bitsandbytes {library.__version__}: NF4 there and back, off by {error:.3f}; a product in four bits"


def probe_faiss(device: str) -> str:
    """Find nearest vectors and hold them against NumPy's."""
    import faiss
    import numpy as np

    library: Any = faiss  # its stubs know the signatures of C++
    vectors = np.random.default_rng(7).standard_normal((1000, WIDTH)).astype(np.float32)
    wanted = (vectors[:ROWS] @ vectors.T).argmax(axis=1)
    index = library.IndexFlatIP(WIDTH)
    index.add(vectors)
    places = ["CPU"]
    expect((index.search(vectors[:ROWS], 1)[1][:, 0] == wanted).all(), "the CPU's index finds other vectors than NumPy")
    if device == "cuda":
        expect(hasattr(library, "StandardGpuResources"), "this FAISS was built without CUDA")
        on_card = library.index_cpu_to_gpu(library.StandardGpuResources(), 0, index)
        expect((on_card.search(vectors[:ROWS], 1)[1][:, 0] == wanted).all(), "the card's index finds other vectors")
        places.append("CUDA")
    return f"FAISS {library.__version__}: nearest of 1,000 vectors on {' and '.join(places)}"


def probe_vllm(device: str) -> str:
    """Run one of vLLM's own kernels, the norm of every layer, and hold it against torch's."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    operations = importlib.import_module("vllm._custom_ops")
    torch.manual_seed(7)
    rows, weight = torch.randn(ROWS, WIDTH, device=device), torch.randn(WIDTH, device=device)
    found = torch.empty_like(rows)
    operations.rms_norm(found, rows, weight, 1e-6)
    wanted = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    error = float((found - wanted).abs().max())
    expect(error < 1e-3, f"vLLM's kernel for norms is off by {error}")
    return f"vLLM {importlib.import_module('vllm').__version__}: its kernel for norms, off by {error:.0e} at most"


def expect(is_right: bool, fault: str) -> None:
    """End the probe with a reason unless something is right."""
    if not is_right:
        sys.exit(fault)


PROBES: dict[str, Callable[[str], str]] = {
    "torch": probe_torch,
    "bitsandbytes": probe_bitsandbytes,
    "faiss": probe_faiss,
    "vllm": probe_vllm,
}
"""Each probe by the package that it tries."""


if __name__ == "__main__":
    print(PROBES[sys.argv[1]](sys.argv[2]))
