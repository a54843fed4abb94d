"""Train a network from Python, in this process, and use it.

`make demo` stages the dataset that is used here.
"""

# %%
import numpy as np

import resnet_pipeline
from resnet_pipeline.jobs.train import Launch, run_config, train_run
from resnet_pipeline.training.metrics_log import read_metrics
from resnet_pipeline.workspace import Workspace

workspace = Workspace.of()  # RESNET_PIPELINE_ROOT, else ./work

# %% A recipe with some fields changed, as `train --set` does; `resnet-pipeline recipes digits/resnet8` lists the fields
config = run_config("digits/resnet8", {"optim.lr": 0.05, "eval_every": 10}, steps=20)  # the recipe has 240

# %% A second call finds the finished run; Launch(workers=2) trains on Ray
trained = train_run(workspace, config, "digits", Launch(launcher="local"))
assert trained is not None  # None is for the helping processes of torchrun
print(trained.run.path)

# %% The run's history
validations = [line for line in read_metrics(trained.run.metrics_file) if line["kind"] == "validation"]
for line in validations:
    print(f"step {line['step']}: {line['top1']:.2f} % of the validation images are wrong")

# %% The trained network
model = resnet_pipeline.load_model(trained.run.path)
wrong = images = 0
for batch in resnet_pipeline.open_dataset("digits").batches("val"):
    wrong += np.count_nonzero(model.predict(batch.images, top=1).classes[:, 0] != batch.labels.numpy())
    images += len(batch.labels)
print(f"{wrong} of {images} wrong")
