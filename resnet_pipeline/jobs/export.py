"""The export job: any network by reference to a file for other programs."""

from __future__ import annotations

from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.models.export import export_onnx, export_program, export_torchvision
from resnet_pipeline.workspace import Workspace


def export_model(workspace: Workspace, reference: str, output: Path) -> None:
    """Write the network of a MODEL reference as the file's ending says; UserError for an unknown ending.

    Example: ``export_model(Workspace.of(), "digits-resnet8", Path("resnet8.onnx"))``
    """
    endings = (".safetensors", ".onnx", ".pt2")
    if output.suffix not in endings:
        raise UserError(f"{output} must end in one of {', '.join(endings)}")
    member = load(workspace, parse(workspace, reference))
    metadata = {"network": member.network, "weights_sha256": member.weights_sha256}
    if output.suffix == ".safetensors":
        export_torchvision(member.classifier, output, metadata)
    elif output.suffix == ".onnx":
        export_onnx(member.classifier, output, size=member.views.crop, metadata=metadata)
    else:
        export_program(member.classifier, output, size=member.views.crop, metadata=metadata)
