"""What a finished run leaves: its weights, and ``result.json``, which says that it is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import write_json
from resnet_pipeline.models.weights import save_weights, weights_sha256

if TYPE_CHECKING:
    from resnet_pipeline.training.loop import Trainer


def write_result(trainer: Trainer) -> None:
    """Write weights and result of a finished run, by rank 0; UserError where there is no room for them."""
    seconds = trainer.seconds_before + trainer.throughput.seconds
    images = trainer.config.steps * trainer.config.batch
    digest = weights_sha256(trainer.classifier)
    metadata = {"recipe": trainer.config.recipe, "run": trainer.run.name, "weights_sha256": digest}
    try:
        save_weights(trainer.classifier, trainer.run.weights_file, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{trainer.run.weights_file} can't be written: {error}; make room and start the same run again"
        ) from error
    if trainer.log:
        trainer.log.append("done", trainer.step, seconds=seconds)
    result = {
        "steps": trainer.config.steps,
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2) if seconds else 0.0,
        "workers": trainer.context.world_size,
        "device": str(trainer.context.device),
        "train_loss": trainer.last_train.get("loss"),
        "train_error": trainer.last_train.get("error"),
        "validation": trainer.errors,
        "best": trainer.best,
        "weights_sha256": digest,
    }
    write_json(trainer.run.result_file, result)
