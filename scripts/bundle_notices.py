"""What a bundle must say of what it brings: licence texts, Llama's notices, the bill of materials (CycloneDX 1.6).

Reads wheels and model manifests; fetches nothing. Does not judge whether licences fit; scripts/licences.py does.
Source of the bill's fields: the CycloneDX 1.6 JSON reference.
"""

import email.parser
import re
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from core.errors import ContractError
from core.layout import sha256_file
from core.manifest import ModelManifest

LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying|notice|copyright)[^/]*$", re.IGNORECASE)
LLAMA_LICENCE = re.compile(r"Llama (\d[\d.]*) Community License", re.IGNORECASE)
LLAMA_PACKAGES = {"llama-models": "3"}
"""Packages that hold Llama Materials without saying so in their metadata, with the version of Meta's licence."""
SHORT = 60
"""Longest line that is a licence's name rather than its text."""
TEXTS = {
    "Apache-2.0": "Apache License Version 2.0",
    "MIT": "Permission is hereby granted, free of charge, to any person obtaining a copy",
    "BSD": "Redistribution and use in source and binary forms, with or without modification, are permitted",
    "PSF-2.0": "PSF hereby grants Licensee a nonexclusive, royalty-free, world-wide license",
    "matplotlib (PSF style)": "MDT hereby grants Licensee a nonexclusive, royalty-free, world-wide license",
}
"""What the text of a licence is known by."""
MODEL_LICENCE_FILES = re.compile(r"^(licen[cs]e|use_policy|notice)", re.IGNORECASE)


@dataclass(slots=True)
class Package:
    """A wheel of the bundle.

    Attributes:
        file: Its file name.
        name: As the package calls itself.
        version: Its version.
        sha256: Of the wheel.
        size_bytes: Of the wheel.
        unpacked_bytes: Of what is in it.
        licence: SPDX expression, or what the package says instead.
        is_expression: Whether `licence` is an SPDX expression by the package's own word.
        requires: Names of the packages that it needs here.
        texts: Its licence files, by their path in the wheel.
    """

    file: str
    name: str
    version: str
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    licence: str
    is_expression: bool
    requires: list[str]
    texts: dict[str, str]

    @property
    def reference(self) -> str:
        """Return the package's URL in the sense of purl."""
        return f"pkg:pypi/{canonicalize_name(self.name)}@{self.version.replace('+', '%2B')}"


def read_package(path: Path) -> Package:
    """Read what a wheel says of itself.

    Raises:
        ContractError: It is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            entries = wheel.infolist()
            names = [entry.filename for entry in entries if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry.filename)]
            metadata = email.parser.BytesParser().parsebytes(wheel.read(names[0]))
            texts = {
                entry.filename: wheel.read(entry).decode("utf-8", errors="replace")
                for entry in entries
                if ".dist-info/" in entry.filename and LICENCE_FILE.search(entry.filename) and not entry.is_dir()
            }
    except (zipfile.BadZipFile, IndexError) as error:
        raise ContractError(f"{path.name}: wanted a wheel with its METADATA, found none ({error}).") from error
    return Package(
        file=path.name,
        name=str(metadata["Name"]),
        version=str(metadata["Version"]),
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        unpacked_bytes=sum(entry.file_size for entry in entries),
        licence=read_licence(metadata, texts.values()),
        is_expression=bool(metadata["License-Expression"]),
        requires=sorted(_read_requirements(metadata)),
        texts=texts,
    )


def read_licence(metadata: Message, texts: Iterable[str] = ()) -> str:
    """Return a package's licence: its SPDX expression, else its own words, its classifiers, or what its text shows."""
    if metadata["License-Expression"]:
        return str(metadata["License-Expression"]).strip()
    lines = [str(line) for line in metadata.get_all("Classifier", [])]
    names = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License ::")]
    names = [name for name in names if name not in ("OSI Approved", "Other/Proprietary License")]
    words = str(metadata["License"] or "").strip()
    first = words.partition("\n")[0].strip()
    if first and words == first and len(first) <= SHORT and first.upper() != "UNKNOWN":
        return first
    if names:
        return " / ".join(names)
    return next(
        (name for text in (words, *texts) for name, sign in TEXTS.items() if sign in " ".join(text.split())), "unknown"
    )


def _read_requirements(metadata: Message) -> set[str]:
    names: set[str] = set()
    for line in metadata.get_all("Requires-Dist", []):
        try:
            wanted = Requirement(str(line))
        except InvalidRequirement:
            continue  # an old package's own fault; the lock decides what is installed
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            names.add(canonicalize_name(wanted.name))
    return names


def find_llama_notices(models: Sequence[ModelManifest], packages: Sequence[Package]) -> tuple[list[str], list[str]]:
    """Return the lines of NOTICE, and what is missing for a Llama model to be passed on.

    Meta's licences ask whoever passes a model on to give the agreement's text and this notice with it.
    """
    lines = ["Loam is licensed under the Apache License, Version 2.0 (LICENSE). Packages: third-party.txt.", ""]
    faults = []
    versions = set()
    for model in models:
        lines.append(f"Model {model.name}: {model.licence}. From {model.source}.")
        found = LLAMA_LICENCE.search(model.licence)
        if found:
            versions.add(found[1])
            if not any(MODEL_LICENCE_FILES.match(name) for name in model.files):
                faults.append(
                    f"{model.name}: wanted the text of the {model.licence} in its folder, found none. Add Meta's "
                    "LICENSE.txt to the folder that you imported, and import it again"
                )
    for package in packages:
        version = LLAMA_PACKAGES.get(canonicalize_name(package.name))
        if version:
            versions.add(version)
            lines.append(f"Package {package.name} {package.version} holds Llama Materials.")
    names = [f"Meta Llama {version}" if version == "3" else f"Llama {version}" for version in sorted(versions)]
    lines += [
        f"\nBuilt with Llama.\n{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved."
        for name in names
    ]
    return [*lines, ""], faults


def render_texts(packages: Sequence[Package]) -> str:
    """Return every package's licence and the texts that it brings, one after the other."""
    parts = []
    for package in sorted(packages, key=lambda package: package.name.lower()):
        parts.append(f"{'=' * 100}\n{package.name} {package.version}: {package.licence}\n")
        parts += [f"{'-' * 100}\n{name}\n\n{text.strip()}\n" for name, text in sorted(package.texts.items())]
        if not package.texts:
            parts.append("The package brings no licence text.\n")
    return "\n".join(parts)


def render_bill(facts: dict[str, Any], packages: Sequence[Package], models: Sequence[ModelManifest]) -> dict[str, Any]:
    """Return the bill of materials: packages with hash, licence and what they need, models with their licence."""
    references: dict[str, str] = {canonicalize_name(package.name): package.reference for package in packages}
    components: list[dict[str, Any]] = [
        {
            "type": "library",
            "bom-ref": package.reference,
            "name": package.name,
            "version": package.version,
            "purl": package.reference,
            "hashes": [{"alg": "SHA-256", "content": package.sha256}],
            "licenses": [
                {"expression": package.licence} if package.is_expression else {"license": {"name": package.licence}}
            ],
        }
        for package in packages
    ]
    components += [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{model.name}",
            "name": model.name,
            "version": model.revision or "",
            "description": f"from {model.source}",
            "licenses": [{"license": {"name": model.licence}}],
            "properties": [{"name": f"loam:sha256:{path}", "value": digest} for path, digest in model.files.items()],
        }
        for model in models
    ]
    root = f"pkg:generic/loam@{facts['version']}"
    needs = [{"ref": root, "dependsOn": sorted(component["bom-ref"] for component in components)}]
    needs += [
        {"ref": package.reference, "dependsOn": sorted(references[n] for n in package.requires if n in references)}
        for package in packages
    ]
    created = datetime.fromtimestamp(facts["created_at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, facts['commit'] + facts['profile'])}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "loam",
                "version": facts["version"],
                "purl": root,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": f"loam:{key}", "value": str(facts[key])} for key in ("commit", "profile")],
            },
        },
        "components": components,
        "dependencies": needs,
    }
