"""The PyTorch networks of `train_step`: the same outputs as ours, or as many FLOPs."""

import json
import sys

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, write_config

WHY = "PyTorch and MONAI come with the extra bench: pip install 'ummcsgm[bench]'"
torch = pytest.importorskip("torch", reason=WHY)
pytest.importorskip("monai", reason=WHY)

from ummcsgm.benchmarks import torch_networks, train_step  # noqa: E402
from ummcsgm.benchmarks.torch_mm_csn import TorchMMCSN  # noqa: E402


@pytest.fixture(autouse=True)
def restore_torch_generator():
    """Tests do not depend on their order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_inputs(network, examples=3):
    """(images, missing, level); one or all modalities are missing."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(examples, 16, 16, network.channels())).astype(np.float32)
    missing = np.arange(examples)[:, None] % 5 == np.arange(network.modalities)
    missing[-1] = True
    return images, missing, np.linspace(-1, 1, examples, dtype=np.float32)


def make_difference(network, params):
    """Returns difference(twin): the twin's largest difference from the network, as a share
    of the network's largest output."""
    inputs = make_inputs(network)
    output = np.asarray(jax.jit(network.apply)(params, *inputs))
    tensors = [torch.tensor(array) for array in inputs]

    def difference(twin):
        with torch.inference_mode():
            other = twin(*tensors).numpy()
        assert output.shape == other.shape
        return np.abs(output - other).max() / np.abs(output).max()

    return difference


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["both", "decoder"])
@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("attention_at", [0, 4])
def test_the_twin_has_the_outputs_and_the_parameters_of_the_network(
    make_network, random_params, conditioning, neighbours, attention_at
):
    network = make_network(
        conditioning=conditioning,
        neighbour_slices=neighbours,
        attention_max_grid=attention_at,
        predict_variance=neighbours == 0,
    )
    params = random_params(network)
    twin = TorchMMCSN(network, params)
    assert make_difference(network, params)(twin) < 1e-4
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(value.numel() for value in twin.parameters()) == count


@pytest.mark.slow
def test_every_parameter_of_the_twin_matters(make_network, random_params):
    """Else the comparison could not tell that one is in the wrong place."""
    network = make_network(predict_variance=True)
    params = random_params(network)
    twin, difference = TorchMMCSN(network, params), make_difference(network, params)
    for name, value in twin.weights.items():
        with torch.no_grad():
            original = value.clone()
            value.add_(0.5)
            # The keys' bias moves all logits of attention alike.
            if not name.endswith("attend/key/bias"):
                assert difference(twin) > 2e-4, name
            value.copy_(original)


@pytest.fixture(scope="module")
def ours():
    """The quickstart's step on a batch of four small slices."""
    config = tiny_config("", network__widths=(32, 64), network__blocks=(1, 1))
    config.train.remat = (False, False)
    return train_step.make_ours(config, 4)


@pytest.fixture
def twin(ours):
    return torch_networks.make_torch_twin(ours.network, ours.params, ours.inputs, compiled=False)


def test_a_twin_with_other_outputs_is_refused(ours, twin):
    agreement = train_step.check_twin(ours, twin)
    assert agreement["apart"] <= 1e-4 and agreement["answer"] == [4, 16, 16, 8]
    assert agreement["parameters"] == twin.parameters
    weights = twin.trained.module.weights
    with torch.no_grad():
        weights["stem/kernel"][0].mul_(1.004)
    with pytest.raises(ValueError, match="the twin's outputs differ"):
        train_step.check_twin(ours, twin)
    twin.parameters += 1
    with pytest.raises(ValueError, match=f"the twin has {twin.parameters} parameters"):
        train_step.check_twin(ours, twin)


@pytest.mark.slow
def test_the_twin_trains_and_its_average_follows(ours, twin):
    """The loss has the same random numbers before and after."""
    step = twin.trained
    before = [value.detach().clone() for value in step.params]

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            draws = [step.loss(twin.images, twin.missing) for _ in range(20)]
        return float(torch.stack(draws).mean())

    first = loss()
    for group in step.optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(30):
        twin.step()
    assert loss() < 0.9 * first
    share = 1 - 0.99**30  # how far the average moves if the parameters jump at once
    for start, value, average in zip(before, step.params, step.ema, strict=True):
        far, near = (value - start).norm(), (average - start).norm()
        assert far > 0 and 0.2 * share * far < near < far


def test_the_loss_is_of_the_missing_modalities_alone(ours, twin):
    """With a network that ignores its images, seen images change nothing."""

    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images, missing, level):
            return torch.zeros_like(images[..., :4]) + self.zero

    step = torch_networks.TorchStep(Zero(), variance=False, compiled=False)

    def loss(images):
        torch.manual_seed(0)
        return float(step.loss(images, twin.missing).detach())

    missing = twin.missing[:, None, None]
    assert loss(twin.images + 3.0 * ~missing) == loss(twin.images)
    assert loss(twin.images + 3.0 * missing) > 2 * loss(twin.images)


@pytest.mark.parametrize("gigaflops", [0.02, 0.1])
def test_monais_network_has_the_wanted_flops(ours, gigaflops):
    monai, size = torch_networks.make_monai(gigaflops * 1e9, ours.inputs, compiled=False)
    assert size["gflop_an_image"] == pytest.approx(gigaflops, rel=0.15)
    flops = torch_networks.forward_flops(monai.trained.module, ours.inputs)
    assert flops == size["gflop_an_image"] * 1e9
    with torch.inference_mode():
        assert monai.answer().shape == (4, 16, 16, 4)


@pytest.mark.slow
def test_no_size_of_monais_network_is_nearer(ours, monkeypatch):
    monkeypatch.setattr(torch_networks, "WIDTHS", range(8, 41, 8))
    monkeypatch.setattr(torch_networks, "GROWTH", ((1, 2, 2), (1, 1, 1)))
    flops = {}
    for width in torch_networks.WIDTHS:
        for growth in torch_networks.GROWTH:
            widths = tuple(width * factor for factor in growth)
            module = torch_networks.MonaiUNet(4, 4, widths)
            flops[widths] = torch_networks.forward_flops(module, ours.inputs)
    for target in [share * count for count in flops.values() for share in (0.99, 1.01)]:
        size = torch_networks.make_monai(target, ours.inputs, compiled=False)[1]
        least = min(abs(count - target) for count in flops.values())
        assert abs(flops[size["widths"]] - target) == least


def test_flops_are_two_a_product_of_one_image():
    class Convolution(torch.nn.Conv2d):
        def forward(self, images, missing, level):
            return super().forward(images)

    images = np.zeros((5, 3, 6, 10), np.float32)
    flops = torch_networks.forward_flops(
        Convolution(3, 7, 3, padding="same"), (images, images[:, 0, 0], images[:, 0, 0])
    )
    assert flops == 2 * 9 * 3 * 7 * 6 * 10


@pytest.mark.slow
def test_the_step_is_timed_beside_the_twin_and_monai(tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    flags = ["--batch", "2", "--calls", "2", "--repeats", "3", "--config", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    train_step.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["batch"] == 2 and report["twin"]["apart"] <= 1e-4
    flops = report["monai"]["gflop_an_image"] / report["gflop_an_image"]
    assert 0.5 < flops < 2  # of a network this small there are few sizes
    for kind in ("step", "answer"):
        rates = report[f"{kind}_images_per_s"]
        assert sorted(rates) == ["monai", "ours", "twin"]
        for name in ("twin", "monai"):
            ratios = report[f"{kind}_to_{name}"]
            assert len(ratios) == 3 and report[f"median_{kind}_to_{name}"] == sorted(ratios)[1]
            first = rates["ours"][0] / rates[name][0]
            assert ratios[0] == pytest.approx(first, rel=0.05)


def test_the_rate_counts_the_time_until_the_last_result_is_there(monkeypatch):
    times, waited = iter([1.0, 3.0, 3.0, 4.0]), []
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(times))
    both = {"a": (lambda: "a", waited.append), "b": (lambda: "b", waited.append)}
    assert train_step.images_per_second(both, 5, 8) == {"a": 20, "b": 40} and waited == ["a", "b"]
