"""FedAdamW as a torch optimizer and its server half."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.cases import CASES
from support.runs import ROUNDS, gradients_of_round, literal_problem, training_of
from support.sequences import SmallTransformer, attention_model, batch_of, unequal_clients

import fedadamw
from fedadamw.checkpoint import CheckpointError, write
from fedadamw.optim import optimizer as optim
from fedadamw.randomness import Purpose, draw_batches, numpy_generator, sample_clients
from fedadamw.validation import InputError
from fedadamw.vector import Layout, trainable

SHARES = [name for name in CASES if name.startswith("fedadamw")]


def flat(model):
    return Layout.of(model).flatten(trainable(model))


def optimizer(model, **settings):
    blocks = fedadamw.Blocks.of(model)
    return fedadamw.FedAdamW(model.named_parameters(), blocks=blocks, **{"lr": 0.01, **settings})


def one_round(model=None, steps=2, **settings):
    """A server and one upload to it."""
    model = attention_model() if model is None else model
    server = fedadamw.Server(model)
    opt = optimizer(model, **settings)
    opt.start_round(server.broadcast())
    inputs = torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        model(inputs).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return server, opt.finish_round()


@pytest.mark.parametrize("one_by_one", [False, True], ids=["fused", "one by one"])
@pytest.mark.parametrize("name", [*SHARES, "local-adamw"])
def test_rounds_equal_the_literal_twin(name, one_by_one, task, monkeypatch):
    if one_by_one:  # as parameters that are not contiguous, or of another type than their gradients
        monkeypatch.setattr(optim, "_is_plain", lambda *_: False)
    case = CASES[name]
    clients, training = unequal_clients(task), training_of(case)
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(ROUNDS)]
    x0 = flat(attention_model()).tolist()
    expected = case.twin(x0, rounds, literal_problem(attention_model(), 5), **case.settings)

    model = attention_model()
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks, share=case.settings.get("share", "none"))
    alpha = 0.0 if name == "local-adamw" else 0.5  # nothing shared, nothing aligned: Local AdamW
    for round_ in range(ROUNDS):
        uploads = []
        for i in sample_clients(0, round_, len(clients), training.clients_per_round):
            opt = fedadamw.FedAdamW(model.named_parameters(), lr=training.lr_at(round_), alpha=alpha, blocks=blocks)
            opt.start_round(server.broadcast())
            generator = numpy_generator(0, Purpose.BATCHES, round_, i)
            for indices in draw_batches(clients[i], generator, batch_size=training.batch_size, steps=None, epochs=2):
                task.losses(model, batch_of(task, indices)).mean().backward()
                opt.step()
                opt.zero_grad()
            uploads.append(opt.finish_round())
        server.update(uploads)
        np.testing.assert_allclose(server.broadcast().state.x.numpy(), expected[round_], rtol=0, atol=1e-10)


def perceptron():
    """No parameter here has a gradient of zero but for rounding, which Adam would blow up to a step."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def train(model, opt, steps):
    inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        opt.zero_grad()
        model(inputs).square().mean().backward()
        opt.step()


def test_before_a_round_it_is_torch_adamw():
    ours, theirs = perceptron(), perceptron()
    train(ours, fedadamw.FedAdamW(ours.parameters(), lr=0.01, weight_decay=0.1), 20)
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1), 20)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-12)


def test_it_goes_on_from_the_state_of_torch_adamw():
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
def test_it_moves_every_kind_of_parameter_as_torch_does(kind, one_by_one, default, default_dtype, monkeypatch):
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
def test_a_loaded_state_gives_torchs_next_step(kind, settings):
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
        (torch.optim.AdamW, {"maximize": True}, "maximize=True: FedAdamW has no such setting"),
        (torch.optim.AdamW, {"amsgrad": True}, "amsgrad=True"),
        (torch.optim.AdamW, {"differentiable": True}, "differentiable=True"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "decoupled_weight_decay=False"),
        (torch.optim.SGD, {"momentum": 0.9}, "not AdamW's: it has momentum_buffer"),
        (torch.optim.SGD, {}, "not AdamW's: its settings are lr, momentum, dampening"),
        (torch.optim.NAdam, {}, "not AdamW's: it has step, mu_product, exp_avg, exp_avg_sq"),
        (torch.optim.RAdam, {"decoupled_weight_decay": True}, "not AdamW's: its settings are lr, betas, eps"),
        (torch.optim.Adamax, {}, "not AdamW's: it has step, exp_avg, exp_inf"),
    ],
)
def test_a_state_that_it_would_not_obey_is_refused_by_name(kind, settings, said):
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


def test_moments_that_lie_otherwise_in_memory_are_the_same_moments():
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


class Odd(torch.nn.Module):
    """Parameters without numbers, one that is a single number, and one of which every side is 1."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 2)
        self.none = torch.nn.Parameter(torch.zeros(0))
        self.no_inputs = torch.nn.Linear(0, 3)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.position_embeddings = torch.nn.Parameter(torch.zeros(1, 1, 1))

    def forward(self, x):
        return self.scale * self.body(x) + self.none.sum() + self.position_embeddings[0] + self.no_inputs.bias.sum()


@pytest.mark.parametrize("granularity", ["paper", "coarse", "tensor", "coordinate", lambda name, p: 1])
@pytest.mark.filterwarnings("ignore:no block rule knows", "ignore:Initializing zero-element")
def test_rounds_of_a_model_with_empty_and_single_parameters(granularity):
    model = Odd()
    blocks = fedadamw.Blocks.of(model, granularity)
    assert {row.parameter: row.blocks for row in blocks.table()}["no_inputs.weight"] == 0
    server = fedadamw.Server(model, blocks=blocks)
    for _ in range(2):
        opt = fedadamw.FedAdamW(model.named_parameters(), lr=1e-2, blocks=blocks)
        opt.start_round(server.broadcast())
        for _ in range(2):
            opt.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            opt.step()
        server.update([opt.finish_round()])
    assert all(bool(t.isfinite().all()) for t in server.broadcast().state)
    assert bool((server.broadcast().state.v > 0).all())


def test_complex_parameters_are_refused_by_name_where_rounds_begin():
    model = torch.nn.Linear(2, 3, dtype=torch.complex64)
    for entry in (fedadamw.Blocks.of, fedadamw.Server):
        with pytest.raises(InputError, match="'weight' is complex"):
            entry(model)


def test_a_deep_copy_keeps_its_blocks():
    server, up = one_round()
    opt = copy.deepcopy(optimizer(attention_model()))
    opt.start_round(server.broadcast())
    assert len(up.state.v) == opt.blocks.B


def test_a_group_that_does_not_learn_has_no_direction():
    model = attention_model()
    frozen = [(n, p) for n, p in model.named_parameters() if n.startswith("embed")]
    rest = [(n, p) for n, p in model.named_parameters() if not n.startswith("embed")]
    blocks = fedadamw.Blocks.of(model)
    opt = fedadamw.FedAdamW([{"params": frozen, "lr": 0.0}, {"params": rest}], lr=0.01, blocks=blocks)
    server = fedadamw.Server(model, blocks=blocks)
    opt.start_round(server.broadcast())
    model(torch.randn(6, 5, 3, dtype=torch.float64)).square().mean().backward()
    opt.step()
    server.update([opt.finish_round()])
    directions = blocks.layout.views(server.broadcast().state.delta)
    assert not directions["embed.weight"].any()
    assert directions["mlp.weight"].any()


def test_a_bad_broadcast_is_refused_by_name():
    model = attention_model()
    server, _ = one_round()
    down = server.broadcast()
    x = down.state.x.clone()
    x[-1] = float("inf")
    opt = optimizer(model)
    before = flat(model)
    for bad, message in ((replaced(down, x=x), "'classifier.bias'"), (replaced(down, v=down.state.v[:-1]), "v has")):
        with pytest.raises(ValueError, match=message):
            opt.start_round(bad)
    assert torch.equal(flat(model), before)
    with pytest.raises(ValueError, match="the model is another one: 'embed.weight'"):
        server.load_into(SmallTransformer(width=8))


@pytest.mark.parametrize("facts", [{}, {"names": 3, "shapes": 4, "cut": 1, "share": 2}, {"names": []}])
def test_a_foreign_file_is_refused(tmp_path, facts):
    write(tmp_path / "up", "upload", {"lr": torch.ones(1), "strange": torch.ones(1)}, facts)
    with pytest.raises(CheckpointError, match="neither an upload nor a broadcast"):
        fedadamw.load(tmp_path / "up")
    save_file({"x": torch.ones(1)}, tmp_path / "other", metadata={"fedadamw": "[]"})
    with pytest.raises(CheckpointError):
        fedadamw.load(tmp_path / "other")


def test_groups_schedulers_and_closures():
    model = attention_model()
    decayed = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    rest = [(n, p) for n, p in model.named_parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 0.02}]
    blocks = fedadamw.Blocks.of(model)
    opt = fedadamw.FedAdamW(groups, lr=0.01, blocks=blocks)
    scheduler = torch.optim.lr_scheduler.LinearLR(opt, start_factor=0.5, total_iters=4)
    server = fedadamw.Server(model, blocks=blocks)
    opt.start_round(server.broadcast())
    inputs = torch.randn(6, 5, 3, dtype=torch.float64)

    def closure():
        opt.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in opt.param_groups])
        assert opt.step(closure) > 0
        scheduler.step()
    up = opt.finish_round()
    by_name = dict(zip(up.layout.names, up.lr.tolist(), strict=True))
    means = np.mean(rates, axis=0)
    assert by_name["mlp.weight"] == pytest.approx(means[0])
    assert by_name["mlp.bias"] == pytest.approx(means[1])
    server.update([up])
    views = up.layout.views(server.broadcast().state.delta)
    deltas = up.layout.views(up.state.delta)
    torch.testing.assert_close(views["mlp.bias"], -deltas["mlp.bias"] / (4 * means[1]))
    torch.testing.assert_close(views["mlp.weight"], -deltas["mlp.weight"] / (4 * means[0]))


def test_the_given_lr_of_the_round_counts():
    server, up = one_round(lr=0.01)
    server.update([up], lr=0.5)
    torch.testing.assert_close(server.broadcast().state.delta, -up.state.delta / (2 * 0.5))


def test_weights_are_normalised():
    server, up = one_round()
    other = one_round(steps=3)[1]
    server.update([up, other], weights=[3, 1])
    expected = flat(attention_model()) + 0.75 * up.state.delta + 0.25 * other.state.delta
    torch.testing.assert_close(server.broadcast().state.x, expected)
    assert float(server.broadcast().state.t) == 2.25


def test_state_dict_round_trip_in_the_middle_of_a_round():
    def steps(model, opt, count):
        inputs = torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for _ in range(count):
            opt.zero_grad()
            model(inputs).square().mean().backward()
            opt.step()

    server, up = one_round()
    server.update([up])
    whole, first = attention_model(), attention_model()
    finals = []
    for start, cut in ((whole, None), (first, 2)):
        model = start
        opt = optimizer(model)
        opt.start_round(server.broadcast())
        steps(model, opt, cut or 5)
        if cut:
            saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
            model = attention_model()
            opt = optimizer(model)
            model.load_state_dict(saved[0])
            opt.load_state_dict(saved[1])
            steps(model, opt, 5 - cut)
        finals.append(opt.finish_round())
    for a, b in zip(finals[0].state, finals[1].state, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(finals[0].lr, finals[1].lr)


def test_frozen_parameters_stay_and_do_not_travel():
    model = attention_model()
    model.embed.requires_grad_(False)
    before = model.embed.weight.clone()
    server, up = one_round(model)
    assert torch.equal(model.embed.weight, before)
    assert "embed.weight" not in up.layout.names
    server.update([up])
    assert len(server.broadcast().state.x) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_parameter_without_gradient_is_left_alone():
    model = attention_model()
    opt = optimizer(model)
    opt.start_round(fedadamw.Server(model).broadcast())
    before = model.classifier.bias.clone()
    model.mlp.weight.sum().backward()
    opt.step()
    assert torch.equal(model.classifier.bias, before)
    assert float(opt.finish_round().state.k) == 1


def test_a_step_without_any_gradient_does_not_count():
    """Lightning takes one where a training step returns None; Delta_G is then of the others alone."""
    model = perceptron()
    server = fedadamw.Server(model)
    opt = optimizer(model)
    opt.start_round(server.broadcast())
    train(model, opt, 2)
    opt.zero_grad()
    opt.step()
    up = opt.finish_round()
    assert float(up.state.k) == 2
    torch.testing.assert_close(up.lr, torch.full_like(up.lr, 0.01))


def test_grad_scaler_skips_a_step_that_overflowed():
    model = SmallTransformer()
    opt = optimizer(model)
    opt.start_round(fedadamw.Server(model).broadcast())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (1.0, float("inf"), 1.0):
        opt.zero_grad()
        scaler.scale(model(torch.randn(2, 5, 3)).square().mean() * factor).backward()
        scaler.step(opt)
        scaler.update()
    assert float(opt.finish_round().state.k) == 2


def test_rounds_of_a_half_precision_model_add_up_in_single_precision():
    model = torch.nn.Linear(5, 3).to(torch.bfloat16)
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)
    for _ in range(258):  # bfloat16 counts to 256
        opt = fedadamw.FedAdamW(model.named_parameters(), blocks=blocks)
        opt.start_round(server.broadcast())
        model(torch.ones(2, 5, dtype=torch.bfloat16)).float().square().sum().backward()
        opt.step()
        opt.zero_grad()
        server.update([opt.finish_round()])
    assert float(server.broadcast().state.t) == 258
    assert server.broadcast().state.x.dtype == torch.float32
    server.load_into(model)
    assert model.weight.dtype == torch.bfloat16


def test_clients_may_train_while_the_server_asks_for_their_uploads():
    model = attention_model()
    server = fedadamw.Server(model)
    server.update(one_round(model)[1] for _ in range(2))
    assert float(server.broadcast().state.t) == 2


def test_saved_and_loaded_uploads_and_broadcasts_are_the_same(tmp_path):
    server, up = one_round()
    fedadamw.save(up, tmp_path / "up.safetensors")
    fedadamw.save(server.broadcast(), tmp_path / "down.safetensors")
    again, down = fedadamw.load(tmp_path / "up.safetensors"), fedadamw.load(tmp_path / "down.safetensors")
    assert again.layout == up.layout
    other = fedadamw.Server(attention_model(seed=5))
    other.restore(down)
    server.update([up])
    other.update([again])
    for a, b in zip(server.broadcast().state, other.broadcast().state, strict=True):
        assert torch.equal(a, b)


def test_the_global_model_can_be_put_back_into_a_module():
    server, up = one_round()
    server.update([up])
    model = attention_model(seed=9)
    server.load_into(model)
    assert torch.equal(flat(model), server.broadcast().state.x)


def replaced(up, **fields):
    from dataclasses import replace

    return replace(up, state=up.state._replace(**fields))


def test_bad_uploads_are_refused_by_name_and_change_nothing():
    server, up = one_round()
    before = server.broadcast().state
    layout = up.layout
    delta = up.state.delta.clone()
    delta[layout.offsets[layout.names.index("mlp.bias")]] = float("nan")
    v = up.state.v.clone()
    v[0] = -1.0
    wider = one_round(SmallTransformer(width=8).double())[1]
    bad = [
        (replaced(up, delta=delta), "upload 1: delta is not finite at 'mlp.bias'"),
        (replaced(up, v=v), "v is negative at 'embed.weight'"),
        (replaced(up, delta=up.state.delta[:-1]), "delta has 162 numbers instead of 163"),
        (replaced(up, k=torch.zeros(1)), "0 steps"),
        (wider, "another model: 'embed.weight' has shape"),
        ("up", "is a str"),
    ]
    for upload, message in bad:
        with pytest.raises(ValueError, match=message):
            server.update([up, upload])
    assert all(torch.equal(a, b) for a, b in zip(before, server.broadcast().state, strict=True))
    with pytest.raises(ValueError, match="no uploads"):
        server.update([])
    with pytest.raises(ValueError, match="1 weights for 2 uploads"):
        server.update([up, up], weights=[1.0])


def test_another_granularity_or_share_is_refused():
    model = attention_model()
    server, _ = one_round()
    blocks = fedadamw.Blocks.of(model, granularity="tensor")
    opt = fedadamw.FedAdamW(model.named_parameters(), blocks=blocks)
    with pytest.raises(ValueError, match="other blocks"):
        opt.start_round(server.broadcast())
    other = fedadamw.Server(model, share="v")
    with pytest.raises(ValueError, match="shares 'mean-v' instead of 'v'"):
        other.restore(server.broadcast())


def test_misuse_says_what_to_do():
    model = attention_model()
    with pytest.raises(RuntimeError, match="need blocks"):
        fedadamw.FedAdamW(model.named_parameters()).finish_round()
    opt = optimizer(model)
    with pytest.raises(RuntimeError, match="before start_round"):
        opt.finish_round()
    opt.start_round(fedadamw.Server(model).broadcast())
    with pytest.raises(RuntimeError, match="without a step"):
        opt.finish_round()
    unnamed = fedadamw.FedAdamW(model.parameters(), blocks=fedadamw.Blocks.of(model))
    with pytest.raises(ValueError, match="named_parameters"):
        unnamed.start_round(fedadamw.Server(model).broadcast())
    with pytest.raises(ValueError, match="lr=-1"):
        fedadamw.FedAdamW(model.named_parameters(), lr=-1)
