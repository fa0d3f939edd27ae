"""FedAdamW inside transformers' Trainer: a client's round is one `Trainer.train()`; only LoRA is trained and sent.

python examples/trainer.py                   # with the data of examples/sentences.py
python examples/trainer.py DATA MODEL        # folders or hub ids, such as stanfordnlp/sst2 roberta-base
"""

import sys
import tempfile
from typing import Any

import sentences
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from fedadamw import Blocks, Broadcast, FedAdamW, Server, Upload
from fedadamw.vector import nbytes


def new_trainer(model: nn.Module, data: Any = None, opt: FedAdamW | None = None, **settings: Any) -> Trainer:
    """A Trainer that prints and saves nothing; `settings` are TrainingArguments, including the scheduler."""
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    args = TrainingArguments(**{"output_dir": tempfile.gettempdir()} | quiet | settings)
    trainer = Trainer(model, args, train_dataset=data, optimizers=(opt, None))
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_client(model: nn.Module, blocks: Blocks, down: Broadcast, data: Any, **settings: Any) -> Upload:
    """Train one client from the broadcast `down` and return its upload."""
    opt = FedAdamW(model.named_parameters(), lr=3e-3, blocks=blocks)
    opt.start_round(down)
    new_trainer(model, data, opt, **settings).train()
    return opt.finish_round()


def main(source: str | None = None, name: str | None = None) -> None:
    """Run rounds of two clients: one has mostly negative reviews, the other mostly positive ones."""
    set_seed(0)
    *clients, held_out = sentences.load(source, size=128)
    encode, model = sentences.encoder(name, [text for data in clients for text in data["sentence"]])
    *clients, held_out = (data.map(encode) for data in (*clients, held_out))
    model = get_peft_model(model, LoraConfig("SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
    server = Server(model, blocks=(blocks := Blocks.of(model)))  # of adapters and head, without the frozen weights
    settings = {"max_steps": 6, "per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
    for round_ in range(5):
        if round_ > 0:
            settings["seed"], down = round_, server.broadcast()  # Trainer sets the seed in every round
            uploads = [train_client(model, blocks, down, data, **settings) for data in clients]
            server.update(uploads)
            server.load_into(model)
        out = new_trainer(model).predict(held_out)
        accuracy = (out.predictions.argmax(-1) == out.label_ids).mean()
        print(f"round {round_}: held-out loss {out.metrics['test_loss']:.3f}, accuracy {accuracy:.3f}")
    sent, whole = nbytes(uploads[0].state), nbytes(model.parameters())
    print(f"an upload has {sent:,} bytes, {sent / whole:.1%} of the model's {whole:,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
