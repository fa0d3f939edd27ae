"""FedAdamW in a loop with accelerate: bfloat16 autocast, and one step from the gradients of two batches.

python examples/accelerate_loop.py
"""

import digits
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import fedadamw


def rounds(accelerator: Accelerator, model: nn.Module, clients: list[DataLoader], count: int) -> fedadamw.Server:
    """Train `model` for `count` rounds of one epoch a client; it ends as the global model."""
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=3e-3, blocks=blocks)
    model, wrapped = accelerator.prepare(model, opt)  # once: start_round resets it for each client
    loaders = [accelerator.prepare_data_loader(loader) for loader in clients]
    for _ in range(count):
        uploads = []
        for loader in loaders:
            opt.start_round(server.broadcast())  # a method of the optimizer, not of its wrapper
            for pixels, labels in loader:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(pixels), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    wrapped.step()  # counts a step only after the last accumulated batch
                    wrapped.zero_grad()
            uploads.append(opt.finish_round())
        server.update(uploads, weights=[len(loader.dataset) for loader in loaders])
        server.load_into(accelerator.unwrap_model(model))
    return server


def main() -> None:
    """Run fifteen rounds of five clients."""
    clients, held_out = digits.load()
    model = digits.network()
    digits.show(0, model, held_out)
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
    loaders = [DataLoader(data, batch_size=16, shuffle=True) for data in clients]
    server = rounds(accelerator, model, loaders, 15)
    digits.show(15, model, held_out)
    batches, steps = sum(map(len, loaders)) * 15 / len(loaders), float(server.broadcast().state.t)
    print(f"{batches:.0f} batches a client, {steps:.0f} steps")


if __name__ == "__main__":
    main()
