"""Average networks from their kept scores; no network runs.

`make demo` tests the networks that are used here; `resnet-pipeline evaluate` adds score files of others.
"""

# %%
import resnet_pipeline
from resnet_pipeline.evaluation.ensemble import average, errors_of, fit_weights, interval_errors
from resnet_pipeline.evaluation.scores import read_scores
from resnet_pipeline.workspace import Workspace

# %% The score files of a dataset under one protocol: probabilities float32 [N, classes] of each validation image
dataset = resnet_pipeline.open_dataset("digits")
folder = Workspace.of().scores / dataset.fingerprint[:12] / "val" / "center-16-of-18"
members = [read_scores(file) for file in sorted(folder.glob("*.parquet"))]
for member in members:
    print(f"{member.model}: top-1 error {errors_of(member).top1:.2f} %")

# %% The mean of their probabilities
mean = average(members)
errors = interval_errors(mean)
low, high = errors.top1_interval
print(f"ensemble of {len(members)}: {errors.top1:.2f} % ({low:.2f} to {high:.2f})")

# %% Weights that fit the labels best; an honest error needs other images than those they were fitted on
weights = fit_weights(members)
print("weights", [round(weight, 2) for weight in weights])
print(f"weighted: {errors_of(average(members, weights=weights)).top1:.2f} %")
