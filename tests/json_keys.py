"""What ``--json`` writes: its keys and the types of their values, as golden/json_keys.json has them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "json_keys.json"
"""For each name a command, and the keys that it wrote when this file was made."""


def check_keys(name: str, run: Callable[..., tuple[int, str, str]], file: Path) -> None:
    """Run a golden command, in the current folder, and compare the keys that it writes."""
    golden = json.loads(GOLDEN.read_text())[name]
    code, _, err = run(*shlex.split(golden["command"]), "--json", str(file))
    assert code == 0, err
    assert sorted(set(keys_of(json.loads(file.read_text())))) == golden["keys"]


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield ``path.to[].key: type`` for every value that is neither an object nor a list, and for an empty one."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from keys_of(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from keys_of(item, f"{path}[]")
    else:
        yield f"{path}: {type(value).__name__}"
