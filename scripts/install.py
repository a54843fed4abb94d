"""What `make install` does: a virtual environment with the tested versions, by the standard library alone.

It says what it will take before it starts, and once in a while how far it has come.

Example: ``python3 scripts/install.py .venv``
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

OLDEST = (3, 11)  # requires-python of pyproject.toml
GIGABYTES = 12  # the environment takes 8, most of it CUDA libraries, and pip's downloads some 4 while it installs
SECONDS_BETWEEN_LINES = 20.0


def problem(target: Path) -> str | None:
    """Return what keeps the installation from starting, in a line that says what to do; None if nothing does."""
    if sys.version_info < OLDEST:
        found, needed = sys.version.split()[0], f"{OLDEST[0]}.{OLDEST[1]}"
        return f"Python {needed} or later is needed, this is {found}; name one: make PYTHON=python{needed} …"
    if sys.platform != "linux":
        return f"Linux is needed (DALI has wheels for no other system), this is {sys.platform}"
    try:
        import ensurepip  # noqa: F401 - Debian leaves it out of its python3
        import venv  # noqa: F401
    except ImportError:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return f"this Python has no venv; on Debian and Ubuntu: apt install python3-venv (or python{version}-venv)"
    free = shutil.disk_usage(target.parent).free / 1e9
    if not target.exists() and free < GIGABYTES:
        return f"{GIGABYTES} GB are needed under {target.parent}, and {free:.1f} are free"
    return None


def install(target: Path, project: Path) -> int:
    """Make the environment, or bring it up to date; return pip's exit status."""
    free = shutil.disk_usage(target.parent).free / 1e9
    print(f"Installing into {target}: some 8 GB of {free:.0f} GB free, most of it CUDA libraries; 3 to 10 minutes")
    if not (target / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    command = [str(target / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--constraint", "constraints.txt", "--editable", ".[dev]"]
    pip = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert pip.stdout is not None
    last = follow(pip.stdout, SECONDS_BETWEEN_LINES)
    if pip.wait():
        print(*last, sep="", end="", file=sys.stderr)
    return pip.returncode


def follow(lines: Iterable[str], seconds: float) -> deque[str]:
    """Read pip's lines to their end, printing time and what it does every ``seconds``; return the last 30."""
    last: deque[str] = deque(maxlen=30)
    doing = "starting pip"
    ended = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not ended.wait(seconds):
            minutes, rest = divmod(int(time.monotonic() - start), 60)
            print(f"  {minutes}:{rest:02d}  {doing}", flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    for line in lines:
        last.append(line)
        if not line.startswith(("WARNING", "DEPRECATION")):
            doing = line.strip()[:100]
    ended.set()
    teller.join()
    return last


def main() -> int:
    """Install into the folder that is named, unless something keeps it from starting (exit status 2)."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv").resolve()
    if found := problem(target):
        print(found, file=sys.stderr)
        return 2
    return install(target, Path(__file__).resolve().parent.parent)


if __name__ == "__main__":
    sys.exit(main())
