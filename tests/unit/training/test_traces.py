"""The loop's arithmetic beside golden loss traces: a change that must not alter it alters no bit of them.

A change that is meant to: ``python tests/golden/make_traces.py --reason "..."``.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.golden.make_traces import (
    AS_AVX2,
    COMMAND,
    FLOAT64,
    FLOAT64_STEPS,
    TRACES,
    golden_file,
    in_a_process,
    this_machine,
    trace,
)
from tests.launching import Started


def compare(name, found):
    """Compare a trace with the golden one of its kind of processor, to the last bit; skip, saying so, without one."""
    golden = json.loads(golden_file(name).read_text())["traces"]
    kind = found["capability"]
    if kind not in golden:
        pytest.skip(f"no golden trace of a processor with {kind}; the float64 trace is compared")
    expected = golden[kind]
    assert found["dataset"] == expected["dataset"], "the images are others than the trace's"
    wrong = [n for n, (a, b) in enumerate(zip(found["losses"], expected["losses"], strict=True)) if a != b]
    same = not wrong and found["weights_sha256"] == expected["weights_sha256"]
    others = [part for part in ("torch", "maker") if found[part] != expected[part]]
    if not same and others:
        pytest.skip(
            f"losses differ from step {wrong[0] if wrong else 'the last'} on, with another {' and '.join(others)} than "
            f"the trace's ({[expected[part] for part in others]}); the float64 trace is compared"
        )
    assert same, f"losses or weights differ from the golden trace from step {wrong[:1]} on; if that is meant: {COMMAND}"


def compare_float64(name, found):
    """Compare the first steps in float64, which every processor computes alike but for the last digits."""
    expected = json.loads(golden_file(name).read_text())["traces"][FLOAT64]
    assert found["dataset"] == expected["dataset"], "the images are others than the trace's"
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4), f"if that is meant: {COMMAND}"


def test_the_traces_are_of_the_recipes_and_say_why_they_are_so():
    for name, traced in TRACES.items():
        golden = json.loads(golden_file(name).read_text())
        assert (golden["recipe"], golden["changes"]) == (traced.recipe, list(traced.changes))
        assert golden["reason"] and golden["command"] == COMMAND
        assert len(golden["traces"]) >= 2 and all(len(t["losses"]) >= FLOAT64_STEPS for t in golden["traces"].values())


@pytest.mark.slow
def test_digits_bit_for_bit(tmp_path):
    compare("digits_resnet8", trace("digits_resnet8", tmp_path))


@pytest.mark.slow
def test_digits_in_float64(tmp_path):
    compare_float64("digits_resnet8", trace("digits_resnet8", tmp_path, FLOAT64))


@pytest.mark.slow
def test_digits_bit_for_bit_with_the_instructions_of_an_older_processor():
    if this_machine()["capability"] != "AVX512":
        pytest.skip("this processor has no AVX-512 to leave out")
    found = in_a_process("digits_resnet8", AS_AVX2)
    assert found["capability"] == "AVX2"
    compare("digits_resnet8", found)


@pytest.mark.soak  # a minute or two; the digits' trace and ResNet-50's in float64 are in `make test`
def test_resnet50_bit_for_bit(imagenet_sample):
    compare("imagenet_resnet50", in_a_process("imagenet_resnet50", {}))


@pytest.mark.slow
def test_resnet50_in_float64(imagenet_sample, tmp_path):
    # in a process of its own, which keeps the memory; forked, since it needs no other settings
    code = "import json, sys; from pathlib import Path; from tests.golden.make_traces import trace; "
    code += "Path(sys.argv[3]).write_text(json.dumps(trace(sys.argv[1], Path(sys.argv[2]), 'float64')))"
    found = tmp_path / "trace.json"
    assert Started(code, ["imagenet_resnet50", str(tmp_path / "run"), str(found)], os.environ).wait(300) == 0
    compare_float64("imagenet_resnet50", json.loads(found.read_text()))
