"""Training that begins with another network's weights: as they are, with another head, deepened."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import load_file, load_folder
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.repeat import commands, training
from resnet_pipeline.jobs.train import run_config, run_of, train_run
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import ValidationEntry, complete_lines, entries_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.workspaces import with_database, with_digits

SMALL = {"batch": 32, "micro_batch": 16, "eval_every": 1000, "checkpoint_every": 1000, "bn_images": 64}
LOCAL = Launch(launcher="local")


@pytest.fixture(scope="module")
def space(tmp_path_factory, digits, mlflow_database) -> Workspace:
    return with_database(with_digits(tmp_path_factory.mktemp("initial") / "work", digits), mlflow_database)


@pytest.fixture(scope="module")
def shallow(space) -> RunDirectory:
    """Return a finished network of 8 layers, which knows something of the digits."""
    return trained(space, "digits/resnet8", steps=24)


def small(recipe: str, steps: int = 2, **fields):
    schedule = {"schedule.kind": "cosine", "schedule.boundaries": []}
    return with_overrides(run_config(recipe), {"steps": steps, **SMALL, **schedule, **fields})


def trained(space, recipe: str, reference: str | None = None, *, deepened: bool = False, steps: int = 2, **fields):
    origin = InitialWeights.of(reference, deepened=deepened)
    config, network = begun_with(space, small(recipe, steps, **fields), "digits", origin)
    found = train_run(space, config, "digits", LOCAL, network)
    assert found is not None
    return found.run


def outputs(classifier: Classifier) -> torch.Tensor:
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return classifier.eval()(images)


def first_validation(run: RunDirectory) -> tuple[int, ValidationEntry]:
    return next(iter(entries_of(complete_lines(run.metrics_file), ValidationEntry)))


@pytest.mark.slow
def test_a_run_begins_with_the_reference_s_outputs_and_error(space, shallow):
    config, network = begun_with(space, small("digits/resnet8"), "digits", InitialWeights(reference=shallow.name))
    reference = load_folder(shallow.path)
    assert network is not None and torch.equal(outputs(network.classifier), outputs(reference.classifier))
    assert (config.model.initial_weights, config.model.initial_head) == (reference.weights_sha256, "kept")
    run = trained(space, "digits/resnet8", shallow.name)
    before = shallow.result()
    assert before is not None
    assert first_validation(run) == (0, ValidationEntry(figures=before.validation))
    assert before.validation["top1"] < 85, "it has learned something"
    after = run.result()
    assert after is not None and after.weights_sha256 != before.weights_sha256


@pytest.mark.slow
def test_a_deepened_network_has_the_shallow_one_s_error_before_its_first_step(space, shallow, caplog):
    caplog.set_level("INFO", "resnet_pipeline.jobs")
    run = trained(space, "digits/resnet14", shallow.name, deepened=True)
    before = shallow.result()
    assert before is not None
    assert first_validation(run) == (0, ValidationEntry(figures=before.validation))
    kept = load_file("cifar-resnet14", run.initial_weights_file).classifier
    expected = outputs(load_folder(shallow.path).classifier)
    torch.testing.assert_close(outputs(kept), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    (said,) = [text for text in caplog.messages if "begins with" in text]
    assert f"weights of {shallow.name}" in said and "deepened from 8 to 14 layers; its classifier is kept" in said


@pytest.mark.parametrize("network", ["cifar-plain20", "cifar-highway20"])
def test_a_plain_network_is_deepened_too(space, tmp_path, network):
    file = saved(tmp_path, network)
    deeper = network.replace("cifar-", "cifar10/").replace("20", "32")
    _, found = begun_with(space, small(deeper), "digits", InitialWeights(reference=f"{network}={file}", deepened=True))
    assert found is not None
    expected = outputs(load_file(network, file).classifier)
    assert not torch.equal(expected[0], expected[1])
    torch.testing.assert_close(outputs(found.classifier), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
def test_the_run_is_another_one_and_says_what_it_began_with(space, shallow, digits):
    run = trained(space, "digits/resnet14", shallow.name, deepened=True)
    plain = run_of(space, small("digits/resnet14"), digits)
    assert run.name != plain.name
    again = [text for title, text in commands(space, digits, [run], ["it"], []) if title.startswith("Train it")]
    assert f"--initial-weights {shallow.name} --deepen" in again[0] and "--set model.initial_head=kept" in again[0]


@pytest.mark.slow
def test_what_resumes_needs_the_reference_no_more(space, shallow, tmp_path):
    """Stopped after a step, it goes on from the config alone, and ends as the one that was not stopped."""
    whole = trained(space, "digits/resnet8", shallow.name, steps=4)
    config, network = begun_with(space, small("digits/resnet8", 4), "digits", InitialWeights(reference=shallow.name))
    elsewhere = with_digits(tmp_path / "work", open_dataset(space, "digits"))
    dataset = open_dataset(elsewhere, "digits")
    run = RunDirectory.create(elsewhere.runs, config, dataset.facts)
    assert network is not None
    network.keep(run)
    calls = iter([False, True])
    assert not train(run, dataset, LocalContext(stop=lambda: next(calls, False)))
    run.initial_weights_file.unlink()
    assert train(RunDirectory.open(run.path), dataset, LocalContext())
    first, second = whole.result(), run.result()
    assert first is not None and second is not None and first.weights_sha256 == second.weights_sha256
    assert "--set model.initial_weights=" in training(config, "digits")


def test_other_classes_get_a_classifier_of_their_own(space, photo_set, tmp_path):
    file = saved(tmp_path, "cifar-resnet8", classes=7)
    config, network = begun_with(
        space, small("digits/resnet8"), "digits", InitialWeights(reference=f"cifar-resnet8={file}")
    )
    assert network is not None and config.model.initial_head == "fresh"
    assert "its classifier is replaced by a random one: it has 7 classes, digits 10" in network.account
    theirs, ours = safetensors.torch.load_file(file), network.classifier.state_dict()
    same = {name for name, tensor in theirs.items() if tensor.shape == ours[name].shape and tensor.equal(ours[name])}
    assert set(ours) - same == {"network.fc.weight", "network.fc.bias"}
    seeds = [begun_with(space, small("digits/resnet8", seed=seed), "digits", network.origin)[1] for seed in (0, 0, 1)]
    heads = [found.classifier.state_dict()["network.fc.weight"] for found in seeds if found]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2]), "the run's seed draws it"


def saved(folder, name: str, *, classes: int = 10, **options):
    torch.manual_seed(3)
    network = build_model(name, num_classes=classes, **options)
    file = folder / f"{name}.safetensors"
    save_weights(
        Classifier(Normalize(torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 50, 40])), network), file, {}
    )
    return file


def test_the_preprocessing_comes_with_the_weights_and_goes_through_checkpoints(space, tmp_path):
    file = saved(tmp_path, "cifar-resnet8")
    run = trained(space, "digits/resnet8", f"cifar-resnet8={file}")
    loaded = load_folder(run.path).classifier.normalize
    assert loaded.mean.tolist() == [120, 110, 100] and loaded.std.tolist() == [60, 50, 40]
    run.result_file.unlink()  # it is finished again from its checkpoint
    again = train_run(space, run.config(), "digits", LOCAL)
    assert again is not None and load_folder(again.run.path).classifier.normalize.std.tolist() == [60, 50, 40]


@pytest.mark.parametrize(
    ("recipe", "network", "deepened", "words"),
    [
        ("digits/resnet14", "cifar-resnet8", False, "--deepen adds its other layers as identity mappings"),
        ("digits/resnet8", "cifar-resnet8", True, "leave --deepen out: it has as many layers"),
        ("digits/resnet8", "cifar-resnet14", True, "it has fewer layers than these weights"),
        ("digits/resnet8", "cifar-resnet14", False, "it has fewer layers than these weights"),
        ("digits/resnet8", "cifar-plain8", False, "that is another kind of network"),
        ("imagenet/resnet18", "cifar-resnet8", False, "that is another kind of network"),
        ("cifar10/resnet20", "cifar-resnet8", False, "--deepen adds"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_started(space, tmp_path, recipe, network, deepened, words):
    before = set(space.runs.glob("*")) if space.runs.exists() else set()
    reference = InitialWeights(reference=f"{network}={saved(tmp_path, network)}", deepened=deepened)
    with pytest.raises(UserError, match=words) as error:
        begun_with(space, small(recipe), "digits", reference)
    assert "\n" not in str(error.value) and network in str(error.value)
    assert before == (set(space.runs.glob("*")) if space.runs.exists() else set())


def test_another_shortcut_is_named_with_what_mends_it(space, tmp_path):
    reference = InitialWeights(reference=f"cifar-resnet8={saved(tmp_path, 'cifar-resnet8', shortcut='B')}")
    with pytest.raises(UserError, match=r"with other options: add --set model.shortcut=B"):
        begun_with(space, small("digits/resnet8"), "digits", reference)
    config, _ = begun_with(space, small("digits/resnet8", **{"model.shortcut": "B"}), "digits", reference)
    assert config.model.initial_head == "kept"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no/such/run", "no model at 'no/such/run'"),
        ("cifar-resnet8=missing.pth", "missing.pth does not exist"),
        ("ilsvrc2015", "stands for 6 networks"),
    ],
)
def test_a_reference_that_is_none_is_one_line(space, reference, words):
    with pytest.raises(UserError, match=words) as error:
        begun_with(space, small("digits/resnet8"), "digits", InitialWeights(reference=reference))
    assert "\n" not in str(error.value)


def test_what_can_t_be_is_refused(space, tmp_path):
    with pytest.raises(UserError, match="--deepen says what is done with --initial-weights"):
        InitialWeights.of(None, deepened=True)
    with pytest.raises(ConfigError, match="must be a SHA-256"):
        small("digits/resnet8", **{"model.initial_weights": "cifar10-plain20", "model.initial_head": "kept"})
    with pytest.raises(ConfigError, match=r"needs model\.initial_head"):
        small("digits/resnet8", **{"model.initial_weights": "a" * 64})
    config = small("digits/resnet8", **{"model.initial_weights": "a" * 64, "model.initial_head": "kept"})
    with pytest.raises(UserError, match="name them with --initial-weights"):
        train_run(space, config, "digits", LOCAL)
    with pytest.raises(UserError, match="given twice"):
        begun_with(space, config, "digits", InitialWeights(reference="x"))
