"""Load a trained network and predict images.

`make demo` trains and registers the network that is used here.
"""

# %% A network with its preprocessing: any MODEL of the command line, such as a run directory or torchvision:resnet50
import resnet_pipeline

model = resnet_pipeline.load_model("digits-resnet20")
print(f"{len(model.classes)} classes, trained on crops of {model.members[0].views.crop} pixels")

# %% Images are files' paths or bytes, Pillow images, or arrays uint8 [N, H, W, 3]
batch = next(resnet_pipeline.open_dataset("digits").batches("val", batch=8))
best = model.predict(batch.images, top=3)

# %% The best classes come first
for label, classes, probabilities in zip(batch.labels.tolist(), best.classes, best.probabilities, strict=True):
    guesses = ", ".join(f"{model.class_words[c]} {p:.1%}" for c, p in zip(classes, probabilities, strict=True))
    print(f"a {model.class_words[label]}: {guesses}")

# %% The mean over ten crops, as in the paper
ten = model.predict(batch.images, protocol="10-crop", top=1)
print(ten.classes[:, 0], ten.probabilities[:, 0].round(3))
