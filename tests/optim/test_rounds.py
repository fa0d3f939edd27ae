"""Rounds of FedAdamW the optimizer and its server equal the literal twin, with torch's usual features."""

import copy

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE
from support.rounds import flat, one_round, optimizer, perceptron, train
from support.runs import ROUNDS, gradients_of_round, literal_problem, training_of
from support.sequences import SmallTransformer, attention_model, batch_of, unequal_clients

import fedadamw
from fedadamw.optim import optimizer as optim
from fedadamw.randomness import Purpose, draw_batches, numpy_generator, sample_clients
from fedadamw.validation import InputError

SHARES = [name for name in CASES if name.startswith("fedadamw") and "align" not in CASES[name].settings]


@pytest.mark.parametrize("one_by_one", [False, True], ids=["fused", "one by one"])
@pytest.mark.parametrize("name", [*SHARES, "local-adamw", "fedadamw-outer"])
def test_rounds_equal_the_literal_twin(name, one_by_one, task, monkeypatch):
    if one_by_one:  # as parameters that are not contiguous, or of another type than their gradients
        monkeypatch.setattr(optim, "_is_plain", lambda *_: False)
    case = EVERYWHERE[name]
    clients, training = unequal_clients(task), training_of(case)
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(ROUNDS)]
    x0 = flat(attention_model()).tolist()
    by_q = {"by_q": True} if case.name == "fedadamw" else {}  # clients take unequal numbers of steps
    expected = case.twin(x0, rounds, literal_problem(attention_model(), 5), **by_q, **case.settings)

    model = attention_model()
    blocks = fedadamw.Blocks.of(model)
    share = "none" if name == "local-adamw" else case.settings.get("share", "mean-v")
    outer = fedadamw.OuterStep(**case.training["outer"]) if case.training else None
    server = fedadamw.Server(model, blocks=blocks, share=share, memory=case.settings.get("memory"), outer=outer)
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
def test_rounds_support_empty_and_single_element_parameters(granularity):
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


def test_blocks_and_server_refuse_complex_parameters_by_name():
    model = torch.nn.Linear(2, 3, dtype=torch.complex64)
    for entry in (fedadamw.Blocks.of, fedadamw.Server):
        with pytest.raises(InputError, match="'weight' is complex"):
            entry(model)


def test_deep_copy_keeps_its_blocks():
    server, up = one_round()
    opt = copy.deepcopy(optimizer(attention_model()))
    opt.start_round(server.broadcast())
    assert len(up.state.v) == opt.blocks.B


def test_group_with_lr_0_has_no_global_direction():
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


def test_rounds_support_groups_schedulers_and_closures():
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


def test_an_explicit_lr_of_the_round_scales_the_global_direction():
    server, up = one_round(lr=0.01)
    server.update([up], lr=0.5)
    torch.testing.assert_close(server.broadcast().state.delta, -up.state.delta / (2 * 0.5))


def test_weights_are_normalised():
    server, up = one_round()
    other = one_round(steps=3)[1]
    server.update([up, other], weights=[3, 1])
    expected = flat(attention_model()) + 0.75 * up.state.delta + 0.25 * other.state.delta
    torch.testing.assert_close(server.broadcast().state.x, expected)


@pytest.mark.parametrize("share", ["mean-v", "vm"])
def test_moments_of_unequal_steps_are_unbiased(share, tmp_path):
    """All gradients are 1, so the debiased moments are 1 too, whatever the clients' numbers of steps."""
    model = attention_model()
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks, share=share, betas=(0.9, 0.95))
    for _ in range(2):
        uploads = []
        for steps in (2, 20):
            client = attention_model()
            opt = fedadamw.FedAdamW(client.named_parameters(), betas=(0.9, 0.95), blocks=blocks)
            fedadamw.save(server.broadcast(), tmp_path / "down")
            opt.start_round(fedadamw.load(tmp_path / "down"))
            for _ in range(steps):
                for p in client.parameters():
                    p.grad = torch.ones_like(p)
                opt.step()
            uploads.append(opt.finish_round())
        server.update(uploads)
    state = server.broadcast().state
    for moment, beta, t in ((state.m, 0.9, state.t[0]), (state.v, 0.95, state.t[-1])):
        torch.testing.assert_close(moment / (1 - beta**t), torch.ones_like(moment), rtol=0, atol=1e-10)
    assert len(state.t) == (2 if share == "vm" else 1)
    assert (state.t < 22).all()


def test_resume_within_a_round_is_bit_identical():
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


def test_frozen_parameters_do_not_change_and_are_not_sent():
    model = attention_model()
    model.embed.requires_grad_(False)
    before = model.embed.weight.clone()
    server, up = one_round(model)
    assert torch.equal(model.embed.weight, before)
    assert "embed.weight" not in up.layout.names
    server.update([up])
    assert len(server.broadcast().state.x) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_parameter_without_gradient_does_not_change():
    model = attention_model()
    opt = optimizer(model)
    opt.start_round(fedadamw.Server(model).broadcast())
    before = model.classifier.bias.clone()
    model.mlp.weight.sum().backward()
    opt.step()
    assert torch.equal(model.classifier.bias, before)
    assert float(opt.finish_round().state.k) == 1


def test_step_without_any_gradient_does_not_count():
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


def test_rounds_of_a_half_precision_model_accumulate_in_float32():
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


def test_update_accepts_a_generator_that_trains_clients():
    model = attention_model()
    server = fedadamw.Server(model)
    server.update(one_round(model)[1] for _ in range(2))
    assert float(server.broadcast().state.t) == 2


def test_the_global_model_is_loaded_into_a_module():
    server, up = one_round()
    server.update([up])
    model = attention_model(seed=9)
    server.load_into(model)
    assert torch.equal(flat(model), server.broadcast().state.x)


def test_misuse_raises_an_error_that_says_what_to_do():
    model = attention_model()
    with pytest.raises(RuntimeError, match="need blocks"):
        fedadamw.FedAdamW(model.named_parameters()).finish_round()
    opt = optimizer(model)
    with pytest.raises(RuntimeError, match="before start_round"):
        opt.finish_round()
    opt.start_round(fedadamw.Server(model).broadcast())
    with pytest.raises(RuntimeError, match="before the first step"):
        opt.finish_round()
    unnamed = fedadamw.FedAdamW(model.parameters(), blocks=fedadamw.Blocks.of(model))
    with pytest.raises(ValueError, match="named_parameters"):
        unnamed.start_round(fedadamw.Server(model).broadcast())
    with pytest.raises(ValueError, match="lr=-1"):
        fedadamw.FedAdamW(model.named_parameters(), lr=-1)


@pytest.mark.parametrize("outer", [True, {"lr": 0.7}])
def test_an_outer_step_of_another_type_is_refused_before_any_client_trains(outer):
    with pytest.raises(InputError, match=r"outer=.*: give an OuterStep, such as fedadamw\.OuterStep\(lr=0\.7\)"):
        fedadamw.Server(torch.nn.Linear(2, 2), outer=outer)
