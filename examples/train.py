"""Train a network from Python, in this process, and use it.

`make demo` stages the dataset that is used here.
"""

# %%
import numpy as np

import resnet_pipeline
from resnet_pipeline.training.metrics_log import ValidationEntry, entries_of, read_metrics

# %% A recipe with some fields changed, as `train --set` does; `resnet-pipeline recipes digits/resnet8` lists the fields
changes = {"steps": 20, "optim.lr": 0.05, "eval_every": 10}  # the recipe has 240 steps

# %% Trained in this process; `workers=2` would do it on Ray. A second call finds the finished run
trained = resnet_pipeline.train("digits/resnet8", "digits", changes)
print(trained.run.path, trained.result.validation)

# %% The run's history
validations = entries_of(read_metrics(trained.run.metrics_file), ValidationEntry)
for step, validation in validations:
    print(f"step {step}: {validation.figures['top1']:.2f} % of the validation images are wrong")

# %% The trained network
model = resnet_pipeline.load_model(trained.run.path)
wrong = images = 0
for batch in resnet_pipeline.open_dataset("digits").batches("val"):
    answers = model.predict(batch.images, top=1).classes[:, 0]
    wrong += int(np.count_nonzero(answers != batch.labels.numpy()))
    images += len(batch.labels)
print(f"{wrong} of {images} wrong")
