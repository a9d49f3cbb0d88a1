"""The images without a container engine: what Dockerfile.cuda copies, in a clean prefix, by its own entry commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.checkout import REPO, list_files
from tests.rules.test_dockerfile import select

MODULE = "scripts/triton_module.sh"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exactly what the runtime stage copies from the checkout, made read-only."""
    root = tmp_path_factory.mktemp("image") / "loam"
    sources = [
        word for arguments in select("COPY", "runtime") if "--from=" not in arguments for word in arguments.split()[:-1]
    ]
    for path in list_files():
        if any(path == source or path.startswith(f"{source}/") for source in sources):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / path, root / path)
    return root


def run_entry(image: Path, data: Path, stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's entry point there with the variables of the image, /data being another folder."""
    pairs = dict(pair.partition("=")[::2] for arguments in select("ENV", "runtime") for pair in arguments.split())
    settings = {name: value.replace("/data", str(data)) for name, value in pairs.items() if name not in ("PATH", "CC")}
    entry = json.loads(select("ENTRYPOINT", stage)[0])
    environment = {"PATH": os.environ["PATH"], **settings, "PYTHONPATH": str(image)}
    command = ["unshare", "-rn", sys.executable, *entry[1:], *options]
    return subprocess.run(command, cwd=image, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_train_image_composes_and_names_what_it_misses(image: Path, tmp_path: Path) -> None:
    shown = run_entry(image, tmp_path, "train", "--cfg", "job", "--resolve")
    assert shown.returncode == 0, shown.stderr
    assert f"data_dir: {tmp_path}" in shown.stdout
    missing = run_entry(image, tmp_path, "train", "data.train=/nowhere.jsonl", "hardware=cpu")
    assert missing.returncode in (2, 3, 4), missing.stderr
    assert "error: " in missing.stderr
    assert "Traceback" not in missing.stderr


def test_the_serve_image_refuses_to_listen_to_all_without_a_key(image: Path, tmp_path: Path) -> None:
    done = run_entry(image, tmp_path, "serve", "hardware=cpu", "model=smollm2_135m")
    assert done.returncode == 2, done.stderr
    assert "key" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(image.rglob("__pycache__"))


def test_tritons_module_is_built_once_and_handed_out(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("wanted gcc, as the build stage has it; found none")
    (tmp_path / "scripts").mkdir()
    script = shutil.copy2(REPO / MODULE, tmp_path / MODULE)
    subprocess.run([script, "build", sys.executable, str(tmp_path / "lib")], check=True)
    built = tmp_path / "lib" / "cuda_utils.so"
    needed = subprocess.run(["readelf", "--dynamic", str(built)], capture_output=True, text=True, check=True).stdout
    assert "Shared library: [libcuda.so.1]" in needed
    code = (
        "import sys, triton.runtime.build as b, triton.backends.nvidia.driver as d; from pathlib import Path;"
        "source = Path(d.dirname, 'driver.c');"
        "print(b._build('cuda_utils', str(source), sys.argv[1], ['/nowhere'], d.include_dirs, d.libraries, []))"
    )
    environment = {**os.environ, "CC": str(script)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == built.read_bytes()
    copied = tmp_path / "cuda_utils.c"  # so Triton 3.7 of locks/cuda.txt calls a copy of driver.c
    shutil.copyfile(tmp_path / "lib" / "cuda_utils.c", copied)
    subprocess.run([script, str(copied), "-O3", "-shared", "-o", str(tmp_path / "again.so")], check=True)
    assert (tmp_path / "again.so").read_bytes() == built.read_bytes()
    (tmp_path / "driver.c").write_text("int of_another_triton;\n")
    for source in ("other.c", str(tmp_path / "driver.c")):
        command = [script, source, "-o", str(tmp_path / "x.so")]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "There is no compiler in this image" in refused.stderr
        assert not (tmp_path / "x.so").exists()
