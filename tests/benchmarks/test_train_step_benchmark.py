"""What a PyTorch user would run does what ours does, or as much of it."""

import json
import sys

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, write_config

WHY = "PyTorch and MONAI come with the extra bench: pip install 'ummcsgm[bench]'"
torch = pytest.importorskip("torch", reason=WHY)
pytest.importorskip("monai", reason=WHY)

from ummcsgm.benchmarks import rivals, train_step  # noqa: E402
from ummcsgm.benchmarks.torch_step import TorchStep  # noqa: E402
from ummcsgm.benchmarks.twin import Twin  # noqa: E402


@pytest.fixture(autouse=True)
def own_randomness():
    """PyTorch's generator is as before: the tests do not depend on their order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def question(network, rows=3):
    """(images, missing, level), among the rows all missing and one missing."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(rows, 16, 16, network.channels())).astype(np.float32)
    missing = np.arange(rows)[:, None] % 5 == np.arange(network.modalities)
    missing[-1] = True
    return images, missing, np.linspace(-1, 1, rows, dtype=np.float32)


def make_apart(network, params):
    """apart(twin): how far the twin is from the network, of the largest value of its
    answer."""
    asked = question(network)
    answer = np.asarray(jax.jit(network.apply)(params, *asked))
    given = [torch.tensor(own) for own in asked]

    def apart(twin):
        with torch.inference_mode():
            other = twin(*given).numpy()
        assert answer.shape == other.shape
        return np.abs(answer - other).max() / np.abs(answer).max()

    return apart


@pytest.mark.parametrize("conditioning", ["both", "decoder"])
@pytest.mark.parametrize("stem", ["haar", "space_to_depth"])
@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("attention_at", [0, 4])
def test_the_twin_answers_as_the_network_with_as_many_parameters(
    make_network, random_params, conditioning, stem, neighbours, attention_at
):
    network = make_network(
        conditioning=conditioning,
        stem=stem,
        neighbour_slices=neighbours,
        attention_max_grid=attention_at,
        predict_variance=neighbours == 0,
    )
    params = random_params(network)
    twin = Twin(network, params)
    assert make_apart(network, params)(twin) < 1e-4
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(own.numel() for own in twin.parameters()) == count


def test_every_parameter_of_the_twin_matters(make_network, random_params):
    """Else the comparison could not tell that one is in the wrong place."""
    network = make_network(predict_variance=True)
    params = random_params(network)
    twin, apart = Twin(network, params), make_apart(network, params)
    for name, value in twin.weights.items():
        with torch.no_grad():
            kept = value.clone()
            value.add_(0.5)
            # To the keys' bias attention is blind: all its logits move alike.
            if not name.endswith("attend/key/bias"):
                assert apart(twin) > 2e-4, name
            value.copy_(kept)


@pytest.fixture(scope="module")
def ours():
    """The quickstart's step on a batch of four small slices."""
    config = tiny_config("", network__widths=(32, 64), network__blocks=(1, 1))
    config.train.remat = (False, False)
    return train_step.make_ours(config, 4)


@pytest.fixture
def twin(ours):
    return rivals.make_twin(ours.network, ours.params, ours.asked, compiled=False)


def test_a_twin_that_answers_otherwise_is_refused(ours, twin):
    told = train_step.check_twin(ours, twin)
    assert told["apart"] <= 1e-4 and told["answer"] == [4, 16, 16, 8]
    assert told["parameters"] == twin.parameters
    weights = twin.trained.module.weights
    with torch.no_grad():
        weights["stem/kernel"][0].mul_(1.004)
    with pytest.raises(ValueError, match="the twin's answers differ"):
        train_step.check_twin(ours, twin)
    twin.parameters += 1
    with pytest.raises(ValueError, match=f"{twin.parameters} parameters"):
        train_step.check_twin(ours, twin)


def test_the_rival_trains_and_its_average_follows(ours, twin):
    """Of the same draws before and after."""
    own = twin.trained
    before = [value.detach().clone() for value in own.own]

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            draws = [own.loss(twin.images, twin.missing) for _ in range(20)]
        return float(torch.stack(draws).mean())

    first = loss()
    for group in own.optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(30):
        twin.step()
    assert loss() < 0.9 * first
    share = 1 - 0.99**30  # of the way, had the parameters jumped at once
    for start, value, average in zip(before, own.own, own.ema, strict=True):
        far, near = (value - start).norm(), (average - start).norm()
        assert far > 0 and 0.2 * share * far < near < far


def test_the_loss_of_the_rival_counts_the_missing_alone(ours, twin):
    """A seen image moves nothing where no network looks at it, a missing one does."""

    class Silent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images, missing, level):
            return torch.zeros_like(images[..., :4]) + self.none

    step = TorchStep(Silent(), variance=False, compiled=False)

    def loss(images):
        torch.manual_seed(0)
        return float(step.loss(images, twin.missing).detach())

    missing = twin.missing[:, None, None]
    assert loss(twin.images + 3.0 * ~missing) == loss(twin.images)
    assert loss(twin.images + 3.0 * missing) > 2 * loss(twin.images)


@pytest.mark.parametrize("gigaflops", [0.02, 0.1])
def test_monai_is_given_as_many_flops_as_asked(ours, gigaflops):
    monai, told = rivals.make_monai(gigaflops * 1e9, ours.asked, compiled=False)
    assert told["gflop_an_image"] == pytest.approx(gigaflops, rel=0.15)
    own = rivals.forward_flops(monai.trained.module, ours.asked)
    assert own == told["gflop_an_image"] * 1e9
    with torch.inference_mode():
        assert monai.answer().shape == (4, 16, 16, 4)


def test_no_size_of_monai_is_nearer(ours, monkeypatch):
    monkeypatch.setattr(rivals, "WIDTHS", range(8, 41, 8))
    monkeypatch.setattr(rivals, "GROWTH", ((1, 2, 2), (1, 1, 1)))
    flops = {}
    for width in rivals.WIDTHS:
        for growth in rivals.GROWTH:
            widths = tuple(width * own for own in growth)
            module = rivals.Monai(4, 4, widths)
            flops[widths] = rivals.forward_flops(module, ours.asked)
    for wanted in [share * own for own in flops.values() for share in (0.99, 1.01)]:
        told = rivals.make_monai(wanted, ours.asked, compiled=False)[1]
        least = min(abs(own - wanted) for own in flops.values())
        assert abs(flops[told["widths"]] - wanted) == least


def test_flops_are_two_a_product_of_one_image():
    class Convolution(torch.nn.Conv2d):
        def forward(self, images, missing, level):
            return super().forward(images)

    images = np.zeros((5, 3, 6, 10), np.float32)
    flops = rivals.forward_flops(
        Convolution(3, 7, 3, padding="same"), (images, images[:, 0, 0], images[:, 0, 0])
    )
    assert flops == 2 * 9 * 3 * 7 * 6 * 10


def test_the_step_is_timed_beside_its_rivals(tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    flags = ["--batch", "2", "--calls", "2", "--repeats", "3", "--config", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    train_step.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["batch"] == 2 and told["twin"]["apart"] <= 1e-4
    flops = told["monai"]["gflop_an_image"] / told["gflop_an_image"]
    assert 0.5 < flops < 2  # of a network this small there are few sizes
    for kind in ("step", "answer"):
        rates = told[f"{kind}_images_per_s"]
        assert sorted(rates) == ["monai", "ours", "twin"]
        for rival in ("twin", "monai"):
            ratios = told[f"{kind}_to_{rival}"]
            assert len(ratios) == 3 and told[f"median_{kind}_to_{rival}"] == sorted(ratios)[1]
            first = rates["ours"][0] / rates[rival][0]
            assert ratios[0] == pytest.approx(first, rel=0.05)


def test_the_rate_is_images_by_the_time_until_the_last_is_there(monkeypatch):
    times, waited = iter([1.0, 3.0, 3.0, 4.0]), []
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(times))
    both = {"a": (lambda: "a", waited.append), "b": (lambda: "b", waited.append)}
    assert train_step.rates(both, 5, 8) == {"a": 20, "b": 40} and waited == ["a", "b"]
