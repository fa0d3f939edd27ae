"""A server and its optimizer in one round, for the tests of optim/."""

import torch

import fedadamw
from fedadamw.vector import Layout, trainable
from support.sequences import attention_model


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
