"""Checkpoints that are not as this version writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.files import sha256_of, write_json


def altered(path: Path, *, without: Sequence[str] = (), **changes: Any) -> Path:
    """Change what a checkpoint's file holds, and its checksum with it; return its path."""
    payload = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in payload.items() if name not in without}, path)
    note = path.with_suffix(".json")
    write_json(note, json.loads(note.read_bytes()) | {"sha256": sha256_of(path)})
    return path
