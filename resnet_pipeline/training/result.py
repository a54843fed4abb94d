"""What a finished run leaves: its weights, and ``result.json``, which says that it is finished."""

from __future__ import annotations

from safetensors import SafetensorError

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import write_json
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.training.metrics_log import MetricsLog
from resnet_pipeline.training.state import RunState


def write_result(state: RunState, log: MetricsLog | None) -> None:
    """Write weights and result of a finished run, by rank 0; UserError where there is no room for them."""
    seconds = state.seconds_before + state.throughput.seconds
    images = state.config.steps * state.config.batch
    digest = weights_sha256(state.classifier)
    metadata = {"recipe": state.config.recipe, "run": state.run.name, "weights_sha256": digest}
    try:
        save_weights(state.classifier, state.run.weights_file, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{state.run.weights_file} can't be written: {error}; make room and start the same run again"
        ) from error
    if log:
        log.append("done", state.step, seconds=seconds)
    result = {
        "steps": state.config.steps,
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2) if seconds else 0.0,
        "workers": state.context.world_size,
        "device": str(state.context.device),
        "precision": state.precision,
        "train_loss": state.last_train.get("loss"),
        "train_error": state.last_train.get("error"),
        "validation": state.errors,
        "best": state.best,
        "weights_sha256": digest,
    }
    write_json(state.run.result_file, result)
