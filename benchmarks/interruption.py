"""A training killed in the middle of an epoch and started again: what is lost, in this project and in others.

Run: python benchmarks/interruption.py [--python PYTHON] [--only NAME …] [--rounds 1] [--picture FILE.svg]
(--python names the interpreter of an environment of its own with torch, torchvision, pillow, ray[train], timm,
lightning, litdata, mosaicml-streaming and webdataset: some of these need an older NumPy than this project).

Each library trains the same network on the same 1,280 images of digits three times: twice to the end, and once killed
by SIGKILL after step 54 of 80, in the middle of the third epoch, and started again at once. Checkpoints are eight steps
apart where the library's documentation has some within epochs, so the last one is that of step 48. Of the steps that
lead to the final weights (those after the checkpoint that it resumed from were computed for nothing) the table counts
how often each image was seen: four epochs should see it four times, so what lacks is lost, and what is beyond is too
much; whether the weights are those of the training that nobody killed, and whether two of those agree; and the seconds
from the kill to the first step beyond it. interrupted.py has the trainings, and how each resumes.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from interrupted import BATCH, EPOCHS, IMAGES, LIBRARIES, PER_EPOCH, SIZE, files

KILL_AFTER = 54
WRITE_LITDATA = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import litdata
from interrupted import files

def read(entry):
    path, label, number = entry
    return {"image": Path(path).read_bytes(), "label": label, "number": number}

if __name__ == "__main__":
    data = Path(sys.argv[1])
    litdata.optimize(read, files(data), output_dir=str(data / "litdata"), chunk_size=160, num_workers=1)
"""
WRITE_MDS = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from streaming import MDSWriter
from interrupted import files

data = Path(sys.argv[1])
columns = {"image": "bytes", "label": "int", "number": "int"}
with MDSWriter(out=str(data / "mds"), columns=columns, size_limit=2**17) as out:
    for path, label, number in files(data):
        out.write({"image": path.read_bytes(), "label": label, "number": number})
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one library's interrupted training."""

    lost: int
    """Views of images that lack of four of each, in the steps that lead to the final weights."""
    beyond: int
    """Views beyond four of an image."""
    recomputed: int
    """Steps that were computed for nothing."""
    equal: bool
    """The weights are those of the training that nobody killed."""
    repeats: bool
    """Two trainings that nobody killed end with equal weights."""
    seconds: list[float]
    """From the kill to the first step beyond it, of each round."""


def write_data(data: Path, python: str, names: list[str]) -> None:
    """Write the images, and each library's own form of them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(IMAGES + 64):
        split = "train" if number < IMAGES else "val"
        folder = data / "images" / split / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[number] * 15.9).astype("uint8")).resize((SIZE, SIZE)).convert("RGB")
        image.save(folder / f"{number:05}.jpg", quality=95)
    here = str(Path(__file__).parent)
    if "lightning" in names:
        script = data / "write_litdata.py"  # its processes need a file to import
        script.write_text(WRITE_LITDATA)
        run([python, str(script), str(data), here])
    if "streaming" in names:
        run([python, "-c", WRITE_MDS, str(data), here])
    if "webdataset" in names:
        (data / "webdataset").mkdir()
        for shard in range(8):
            with tarfile.open(data / "webdataset" / f"{shard}.tar", "w") as tar:
                for path, label, _ in files(data)[shard::8]:
                    for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.cls", b"%d" % label)):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        tar.addfile(entry, BytesIO(content))
    if "ours" in names:
        program = Path(sys.executable).with_name("resnet-pipeline")
        run([str(program), "stage", "--source", str(data / "images"), "--name", "ours", "--root", str(data)])


def run(command: list[str], *, killed: bool = False) -> None:
    """Run a command to its end, which must be good, or the kill."""
    own = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode != (-9 if killed else 0):
        sys.exit(f"{' '.join(command[:3])} … ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def counts(entries: list[dict[str, object]]) -> tuple[collections.Counter[int], int]:
    """Return how often each image was seen by steps that lead to the end, and the steps that were for nothing."""
    kept: list[dict[str, object]] = []
    dropped = 0
    for entry in entries:
        if "resumed" in entry:
            dropped += sum(one["step"] > entry["resumed"] for one in kept)
            kept = [one for one in kept if one["step"] <= entry["resumed"]]
        else:
            kept.append(entry)
    seen: collections.Counter[int] = collections.Counter()
    for one in kept:
        seen.update(one["numbers"])
    return seen, dropped


def measure(name: str, data: Path, folder: Path, python: str, rounds: int) -> Outcome:
    """Train to the end twice, and killed and started again in each round."""
    script = str(Path(__file__).with_name("interrupted.py"))
    command = [sys.executable if name == "ours" else python, script, name]
    whole = [folder / name / "whole", folder / name / "again"]
    for each in whole:
        run([*command, str(each), str(data)])
    found, dropped, seconds, equal = collections.Counter(), 0, [], True
    for number in range(rounds):
        broken = folder / name / f"killed{number}"
        if name == "ray":  # Ray starts the worker again itself
            run([*command, str(broken), str(data), f"--kill-after={KILL_AFTER}"])
        else:
            run([*command, str(broken), str(data), f"--kill-after={KILL_AFTER}"], killed=True)
            run([*command, str(broken), str(data)])
        entries = lines(broken)
        cut = next(at for at, entry in enumerate(entries) if entry.get("step") == KILL_AFTER)
        beyond = next(entry for entry in entries[cut + 1 :] if entry.get("step", 0) > KILL_AFTER)
        seconds.append(float(beyond["time"]) - float(entries[cut]["time"]))
        found, dropped = counts(entries)
        equal = equal and (broken / "weights").read_text() == (whole[0] / "weights").read_text()
    return Outcome(
        lost=sum(max(0, EPOCHS - found[number]) for number in range(IMAGES)),
        beyond=sum(max(0, found[number] - EPOCHS) for number in range(IMAGES)),
        recomputed=dropped,
        equal=equal,
        repeats=(whole[0] / "weights").read_text() == (whole[1] / "weights").read_text(),
        seconds=seconds,
    )


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    rows = [
        "| training | views lost | views too many | steps computed again | weights as if nobody had killed it | "
        "two whole trainings agree | s to the next new step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in outcomes.items():
        answers = ["yes" if answer else "no" for answer in (one.equal, one.repeats)]
        rows.append(
            f"| {LIBRARIES[name][0]} | {one.lost} | {one.beyond} | {one.recomputed} | {' | '.join(answers)} | "
            f"{statistics.median(one.seconds):.1f} |"
        )
    return "\n".join(rows)


def picture(outcomes: dict[str, Outcome]) -> str:
    """Return bars of the views of images as SVG: as often as they should be, lost, and too many."""
    width, left, row = 420, 330, 30
    colours = {"as it should be": "#8fb8de", "lost": "#b3261e", "too many": "#e39a2d"}
    views = IMAGES * EPOCHS
    scale = width / max(views + one.beyond for one in outcomes.values())
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {row * (len(outcomes) + 2)}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for number, (label, colour) in enumerate(colours.items()):
        x = left + 140 * number
        drawn.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 18}" y="23">{label}</text>')
    for number, (name, one) in enumerate(outcomes.items(), start=1):
        y, x = row * number + 10, float(left)
        drawn.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{LIBRARIES[name][0]}</text>')
        for colour, part in zip(colours.values(), (views - one.lost, one.lost, one.beyond), strict=True):
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{part * scale:.1f}" height="20" fill="{colour}"/>')
            x += part * scale
    return "\n".join([*drawn, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the other libraries")
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(data, given.python, given.only)
        for name in given.only:
            print(f"{name}: {2 + given.rounds} trainings of {EPOCHS * PER_EPOCH} steps of {BATCH}", file=sys.stderr)
            outcomes[name] = measure(name, data, Path(folder) / "runs", given.python, given.rounds)
            print(outcomes[name], file=sys.stderr)
    print(table(outcomes))
    if given.picture:
        given.picture.write_text(picture(outcomes) + "\n")


if __name__ == "__main__":
    main()
