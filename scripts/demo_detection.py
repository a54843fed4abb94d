"""What `make demo-detection` does: digits on backgrounds to a registered Mask R-CNN and a picture of what it finds.

Everything is kept under RESNET_PIPELINE_ROOT, else ./work; run again, it reuses what is finished.

Example: ``python scripts/demo_detection.py``
"""

from __future__ import annotations

import logging

from resnet_pipeline.jobs.demo_detection import demo_detection
from resnet_pipeline.workspace import Workspace


def main() -> None:
    """Run the demo and say what it came to."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("resnet_pipeline").setLevel(logging.INFO)
    found = demo_detection(Workspace.of())
    kinds = {"boxes": found.evaluation.boxes, "masks": found.evaluation.masks}
    for kind, metrics in kinds.items():
        if metrics is not None:
            print(f"{kind}: AP {metrics.ap:.1f} %, AP50 {metrics.ap50:.1f} % on {found.evaluation.images} images")
    print(f"registered as {found.version}: {found.promotion}")
    print(f"What it finds: {found.picture}")
    print(f"Took {found.seconds:.0f} s{', with what was finished before' if found.reused else ''}.")


if __name__ == "__main__":
    main()
