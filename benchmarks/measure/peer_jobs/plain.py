"""The job as a plain PyTorch loop, as a researcher would write it; the reference for memory."""

import copy
import os

from job import LR, WEIGHT_DECAY, Stopwatch, arguments, batches_of, clients_of, data, model_of

watch = Stopwatch()
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812

torch.set_num_threads(int(os.environ.get("THREADS", "1")))
name, rounds, sampled = arguments()
images, labels = data()
server = model_of(name)
for round_ in range(rounds):
    states, losses = [], []
    for client in clients_of(round_, sampled):
        model = copy.deepcopy(server)
        opt = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        for batch in torch.from_numpy(batches_of(round_, client)):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        states.append(model.state_dict())
    server.load_state_dict({key: torch.stack([s[key] for s in states]).mean(0) for key in states[0]})
    watch.round(sum(losses) / len(losses))
watch.report()
