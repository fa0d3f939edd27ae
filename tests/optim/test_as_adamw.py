"""Outside of rounds FedAdamW equals torch's AdamW, and takes its state."""

import copy

import pytest
import torch
from support.rounds import flat, perceptron, train

import fedadamw
from fedadamw.optim import optimizer as optim
from fedadamw.validation import InputError


def test_optimizer_equals_torch_adamw_before_the_first_round():
    ours, theirs = perceptron(), perceptron()
    train(ours, fedadamw.FedAdamW(ours.parameters(), lr=0.01, weight_decay=0.1), 20)
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1), 20)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-12)


def test_optimizer_resumes_from_a_torch_adamw_state():
    ours, theirs = perceptron(), perceptron()
    before = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    train(theirs, before, 5)
    ours.load_state_dict(theirs.state_dict())
    opt = fedadamw.FedAdamW(ours.parameters(), lr=0.5)
    opt.load_state_dict(copy.deepcopy(before.state_dict()))
    train(ours, opt, 5)
    train(theirs, before, 5)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-12)


def drawn(*shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)


KINDS = {  # of parameters: one that is new each time
    "matrix": lambda: drawn(3, 4),
    "scalar": drawn,
    "empty": lambda: drawn(0, 3),
    "double": lambda: drawn(5, dtype=torch.float64),
    "bfloat16": lambda: drawn(5, dtype=torch.bfloat16),
    "transposed": lambda: drawn(3, 4).t(),
    "channels-last": lambda: drawn(2, 3, 4, 4, memory_format=torch.channels_last),
    "complex": lambda: drawn(3, 4, dtype=torch.complex64),
    "complex-transposed": lambda: drawn(3, 4, dtype=torch.complex64).t(),
}


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def moved_by(make, kind, steps=100):
    """A parameter of this kind after the steps of an optimizer, by gradients that are the same for each."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(KINDS[kind]())
    still = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    opt = make([p, still])
    for _ in range(steps):
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        opt.step()
    return p.detach()


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["fused", "one by one"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_parameter_steps_like_torch_adamw(kind, one_by_one, default, default_dtype, monkeypatch):
    if one_by_one:
        monkeypatch.setattr(optim, "_is_plain", lambda *_: False)
    settings = {"lr": 2**-7, "betas": (0.8, 0.9999), "weight_decay": 0.125}  # float32 has all digits of 1 - lr lambda
    half = kind == "bfloat16"  # there only torch's fused kernel keeps steps that are short beside the weights
    expected = moved_by(lambda p: torch.optim.AdamW(p, fused=half, foreach=False, **settings), kind)
    default_dtype(default)
    found = moved_by(lambda p: fedadamw.FedAdamW(p, **settings), kind)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if half else 3e-6)
    settings["lr"] = torch.tensor([2**-7], dtype=torch.float64)
    assert torch.equal(moved_by(lambda p: fedadamw.FedAdamW(p, **settings), kind), found)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"eps": 0.0}),
        (torch.optim.Adam, {"weight_decay": 0.0}),
    ],
)
def test_loaded_state_gives_the_next_step_of_torch(kind, settings):
    p, q = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    theirs, ours = kind([p], lr=0.1, **settings), fedadamw.FedAdamW([q])
    p.grad = torch.arange(1.0, 7.0).view(2, 3)
    theirs.step()
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    with torch.no_grad():
        q.copy_(p)
    p.grad, q.grad = -p.grad.square(), -p.grad.square()
    theirs.step()
    ours.step()
    torch.testing.assert_close(q, p, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (torch.optim.AdamW, {"maximize": True}, "maximize=True: FedAdamW does not support this setting"),
        (torch.optim.AdamW, {"amsgrad": True}, "amsgrad=True"),
        (torch.optim.AdamW, {"differentiable": True}, "differentiable=True"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "decoupled_weight_decay=False"),
        (torch.optim.SGD, {"momentum": 0.9}, "not AdamW's: a parameter has momentum_buffer"),
        (torch.optim.SGD, {}, "not AdamW's: its settings are lr, momentum, dampening"),
        (torch.optim.NAdam, {}, "not AdamW's: a parameter has step, mu_product, exp_avg, exp_avg_sq"),
        (torch.optim.RAdam, {"decoupled_weight_decay": True}, "not AdamW's: its settings are lr, betas, eps"),
        (torch.optim.Adamax, {}, "not AdamW's: a parameter has step, exp_avg, exp_inf"),
    ],
)
def test_state_with_unsupported_settings_is_refused_by_name(kind, settings, said):
    p = torch.nn.Parameter(torch.ones(3))
    theirs = kind([p], lr=0.1, **settings)
    p.grad = torch.ones(3)
    theirs.step() if "differentiable" not in settings else None
    ours = fedadamw.FedAdamW([p], lr=0.2)
    with pytest.raises(InputError, match=said):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 0.2
    if kind is torch.optim.AdamW:
        with pytest.raises(InputError, match=said):
            fedadamw.FedAdamW([{"params": [p], **settings}])


def test_the_memory_format_of_moments_does_not_matter():
    """As in a state that was saved of a model in channels_last."""
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        p = torch.nn.Parameter(drawn(2, 3, 2, 2))
        opt = fedadamw.FedAdamW([p], lr=0.1)
        for _ in range(3):
            p.grad = torch.randn(2, 3, 2, 2)
            opt.step()
            for name in ("m", "v"):
                opt.state[p][name] = opt.state[p][name].contiguous(memory_format=memory_format)
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
