"""The images of a staged dataset in batches, for tests and for a training loop of your own.

`make demo` stages the dataset that is used here.
"""

# %%
import torch

import resnet_pipeline
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.recipes import get_recipe

dataset = resnet_pipeline.open_dataset("digits")
print({name: len(split) for name, split in dataset.splits.items()}, dataset.classes, dataset.fingerprint[:12])

# %% Each validation image once, in order: images uint8 [N, H, W, 3], labels and sample numbers int64 [N]
images_per_class = torch.zeros(len(dataset.classes), dtype=torch.int64)
for batch in dataset.batches("val", batch=64):
    images_per_class += torch.bincount(batch.labels, minlength=len(dataset.classes))
print(images_per_class)

# %% Centre crops, as a network is tested: the shorter side is resized to 18 pixels, then 16 are cut out
batch = next(dataset.batches("val", batch=4, crop=16, resize=18))
print(batch.images.shape, [dataset.splits["val"].keys[number] for number in batch.index.tolist()])

# %% Training batches, shuffled and augmented: the content of a step depends on the seed and the step alone
recipe = get_recipe("digits/resnet20")
with train_batches(
    dataset.staged, augment=recipe.augment, seed=0, batch=64, micro_batch=32, start_step=100, steps=2
) as micro_batches:
    for micro_batch in micro_batches:
        print(micro_batch.images.shape, micro_batch.labels[:8].tolist())
