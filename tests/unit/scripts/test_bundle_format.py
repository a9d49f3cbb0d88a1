"""A bundle is what its manifest says, byte for byte: one flipped bit anywhere is refused, and the file named."""

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ContractError, LoamError, NotFound
from core.layout import read_sealed_json, write_sealed_json
from scripts.bundle_create import create_bundle
from scripts.bundle_format import MANIFEST, SIGNATURE, SUMS, list_files, verify_bundle
from tests.fakes.bundles import BARE_PYTHON, make_order, write_model, write_packages


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle of a few files, some of them in pieces; `signers` beside it names who signed."""
    root = tmp_path_factory.mktemp("format")
    lines = write_packages(root / "packages")
    order = make_order(root, lines, models=("mini",))
    write_model(order.data, "mini")
    for name in ("key", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(root / name)]
        subprocess.run(command, check=True)
        public = (root / f"{name}.pub").read_text()
        (root / f"{name}.signers").write_text(f"{name}@example.com {public}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(root / "packages"))
        patch.setenv("PIP_NO_INDEX", "1")
        create_bundle(order, root / "key")
    return order.out


@pytest.fixture
def bundle(signed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(signed, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_whole_bundle_is_well_and_stays_so_when_it_checks_itself(signed: Path) -> None:
    before = list(list_files(signed))
    assert any(".part-0002" in name for name, _ in before)
    for options in ([], [f"signers={signed.parent / 'key.signers'}"]):
        command = [BARE_PYTHON, "-S", "-E", str(signed / "bundle.py"), "verify", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "GiB, well" in done.stdout
        following = shlex.split(done.stdout.partition("next: ")[2])
        assert following == ["python3.11", str(signed / "bundle.py"), "install", "to=PREFIX", *options]
    assert list(list_files(signed)) == before


def test_the_sums_are_what_coreutils_reads(signed: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    assert subprocess.run(command, cwd=signed, check=False).returncode == 0
    named = {line.split("  ")[1] for line in (signed / SUMS).read_text().splitlines()}
    assert named == {name for name, _ in list_files(signed)} - {SUMS, SIGNATURE}


@given(st.data())
def test_one_flipped_bit_anywhere_is_refused_by_name(signed: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name, _ in list_files(signed)]))
    path = signed / name
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        with pytest.raises(ContractError) as refusal:
            verify_bundle(signed, data.draw(st.sampled_from([None, signed.parent / "key.signers"])))
    finally:
        path.write_bytes(content)
    assert name in refusal.value.message


def flip_bit(path: Path, chance: random.Random) -> None:
    """Flip one bit of a file where it lies; the same call again mends it."""
    place, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def pick_files(bundle: Path, chance: random.Random) -> list[str]:
    """Return 39 files of a bundle, without its manifest: what seals it, pieces where there are any, others by lot."""
    names = [name for name, _ in list_files(bundle) if (bundle / name).stat().st_size]
    sealing = [name for name in (SUMS, SIGNATURE) if name in names]
    pieces = [name for name in names if ".part-" in name][:3]
    others = [name for name in names if name not in {MANIFEST, *sealing, *pieces}]
    return [*sealing, *pieces, *chance.sample(others, 39 - len(sealing) - len(pieces))]


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_BUNDLE"), reason="wanted LOAM_TEST_BUNDLE=DIR, a real bundle")
def test_forty_flipped_bits_of_a_real_bundle_are_refused_by_name() -> None:
    """One bit in each of 39 files: all are named. The manifest by itself: where it is damaged nothing else is read."""
    bundle = Path(os.environ["LOAM_TEST_BUNDLE"])
    seed = int(os.environ.get("LOAM_TEST_SEED", "7"))
    verify_bundle(bundle)
    names = pick_files(bundle, random.Random(seed))
    for chosen in (names, [MANIFEST]):
        for name in chosen:
            flip_bit(bundle / name, random.Random(f"{seed} {name}"))
        try:
            with pytest.raises(ContractError) as refusal:
                verify_bundle(bundle)
        finally:
            for name in chosen:
                flip_bit(bundle / name, random.Random(f"{seed} {name}"))
        assert [name for name in chosen if f"{name} " not in refusal.value.message] == []
    verify_bundle(bundle)


def test_all_that_is_missing_extra_or_longer_is_named_at_once(bundle: Path) -> None:
    (bundle / "README.txt").unlink()
    (bundle / "wheels" / "extra.whl").write_bytes(b"")
    with (bundle / "sbom.cdx.json").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ContractError) as refusal:
        verify_bundle(bundle)
    for words in ("README.txt is missing", "wheels/extra.whl is not in the manifest", "sbom.cdx.json has changed"):
        assert words in refusal.value.message


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_what_is_no_ordinary_file_is_refused_even_with_the_right_bytes(bundle: Path, tmp_path: Path, kind: str) -> None:
    name = "licences/NOTICE"
    (bundle / "licences").rename(tmp_path / "licences")
    if kind == "folder":
        (bundle / "licences").symlink_to(tmp_path / "licences")
        name = "licences"
    else:
        shutil.copytree(tmp_path / "licences", bundle / "licences")
        (bundle / name).unlink()
        (bundle / name).symlink_to(tmp_path / name) if kind == "file" else os.mkfifo(bundle / name)
    with pytest.raises(ContractError, match=f"{name} is a link or no ordinary file"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ".hidden", "a//b", "a\nb", ""])
def test_a_manifest_cannot_lead_elsewhere(bundle: Path, name: str) -> None:
    content = read_sealed_json(bundle / MANIFEST)
    content["files"][name] = [0, "0" * 64]
    write_sealed_json(bundle / MANIFEST, content)
    with pytest.raises(ContractError, match="names what no bundle holds"):
        verify_bundle(bundle)


@pytest.mark.parametrize("change", [{"format": 2}, {"files": []}, {"split": {"a": {}}}, {"other": 1}])
def test_a_manifest_of_another_form_is_refused(bundle: Path, change: dict[str, object]) -> None:
    write_sealed_json(bundle / MANIFEST, {**read_sealed_json(bundle / MANIFEST), **change})
    with pytest.raises(ContractError, match=r"manifest\.json has changed or is of another Loam"):
        verify_bundle(bundle)


def test_a_signature_is_by_one_of_those_who_are_trusted(bundle: Path, signed: Path) -> None:
    verify_bundle(bundle, signed.parent / "key.signers")
    with pytest.raises(ContractError, match=f"{SIGNATURE} is by nobody of"):
        verify_bundle(bundle, signed.parent / "other.signers")
    (bundle / SIGNATURE).unlink()
    verify_bundle(bundle)
    with pytest.raises(ContractError, match=f"{SIGNATURE} is missing"):
        verify_bundle(bundle, signed.parent / "key.signers")


def test_a_folder_that_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="wanted a bundle") as refusal:
        verify_bundle(tmp_path)
    assert isinstance(refusal.value, LoamError)
