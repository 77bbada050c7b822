"""PyTorch's side of `train_step.rs`: the same networks, batches and optimisers, medians of 10.

    python examples/train_step.py [THREADS]
"""

import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


def resnet20():
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for channels in (16, 32, 64):
        for block in range(3):
            stride = 2 if channels > 16 and block == 0 else 1
            layers.append(Block(width, channels, stride))
            width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def median(name, step, runs=10):
    step()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {statistics.median(times):.1f} ms, peak of the process {peak} MiB", flush=True)


model = resnet20()
sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
index = torch.arange(128 * 3072, dtype=torch.int64)
x = ((index * index % 997).float() / 498.5 - 1).reshape(128, 3, 32, 32)
y = torch.arange(128) % 10


def step():
    sgd.zero_grad()
    F.cross_entropy(model(x), y).backward()
    sgd.step()


median("resnet-20, 128 images", step)
model.eval()
with torch.no_grad():
    median("resnet-20, 128 images, inference", lambda: model(x))

from transformers import LlamaForCausalLM  # noqa: E402 (its memory is not ResNet's)

llama = LlamaForCausalLM.from_pretrained("assets/tiny-llama", dtype=torch.float32)
adam = torch.optim.AdamW(llama.parameters(), lr=1e-4, weight_decay=0.01)
index = torch.arange(8 * 129, dtype=torch.int64)
ids = ((index * index * 7 + 13 * index) % 1536).reshape(8, 129)


def llama_step():
    adam.zero_grad()
    logits = llama(ids[:, :128]).logits
    F.cross_entropy(logits.reshape(-1, 1536), ids[:, 1:].reshape(-1)).backward()
    adam.step()


median("tiny llama, 8 x 128 tokens", llama_step)
