"""Two processes that share the bins of a class: the loss and the gradient of one process with the whole batch."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from benchmarks.gpu.losses import batch
from benchmarks.gpu.setting import Setting
from nnunet_calib.losses import ml1_ace_loss

RANKS = 2
SHAPE = (16, 16, 16)


def _run(rank: int, setting: Setting, port: int, file: str) -> None:
    """Compute the loss of one image; rank 0 writes it and its gradient."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device("cuda", rank) if setting.on_gpu else setting.device
    if setting.on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if setting.on_gpu else "gloo", rank=rank, world_size=RANKS)
    logits, target = (x.detach()[rank : rank + 1].to(device) for x in batch(setting, 4, SHAPE, False))
    value = ml1_ace_loss(logits.requires_grad_(), target, pool="batch")
    value.backward()
    if rank == 0:
        assert logits.grad is not None
        torch.save((value.detach().cpu(), logits.grad.cpu()), file)
    distributed.destroy_process_group()


def compare(setting: Setting) -> bool:
    """Compare both, where there are two GPUs."""
    if setting.on_gpu and torch.cuda.device_count() < RANKS:
        print("one GPU only: not measured")
        return True
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "rank0.pt"))
        multiprocessing.spawn(_run, (setting, port, file), nprocs=RANKS)
        value, gradient = torch.load(file)
    logits, target = batch(setting, 4, SHAPE, False)
    expected = ml1_ace_loss(logits, target, pool="batch")
    expected.backward()
    assert logits.grad is not None
    # DDP averages the ranks' gradients, each of which is therefore as many times as large
    off = (gradient.float() / RANKS - logits.grad[:1].float().cpu()).abs().max() / logits.grad.abs().max().cpu()
    difference = abs(float(value) - float(expected.detach()))
    print(f"value off by {difference:.1e}, gradient by {float(off):.1e} of its largest entry")
    return difference < 1e-5 and float(off) < 5e-3
