"""How number format and memory layout change the speed of a network on this machine, as ratios to plain float32.

    python benchmarks/compute_formats.py [--quick]

The variants run in turn, A B C A B C …, with the allocator set as `imgcls.compute` sets it, so that a slow minute of the machine
falls on all of them. Prints images per second (median) and the ratio to 'fp32' of the same round (median, with the smallest and the largest).
"""
import argparse, statistics, time

import timm
import torch

from imgcls.compute import Compute, bf16_reason, run_as, tune_allocator

variants = {'fp32': Compute(), 'fp32, channels last': Compute(channels_last=True),
            'bf16, channels last': Compute(dtype=torch.bfloat16, channels_last=True)}


def step(model, x, compute, train):
    with torch.set_grad_enabled(train):
        with run_as(model, compute): out = model(x)
        if train: out.logsumexp(1).mean().backward()


def measure(name, size, train, bs, rounds):
    "Images per second of each variant in each round"
    models = {}
    for k, c in variants.items():
        model = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last if c.channels_last else torch.contiguous_format)
        models[k] = (model.train(train), c)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
    x, res = torch.randn(bs, 3, size, size), {k: [] for k in variants}
    for i in range(rounds + 1):
        for k, (model, c) in models.items():
            start = time.perf_counter()
            step(model, x, c, train)
            if i: res[k].append(bs / (time.perf_counter() - start))  # the first round warms up
    return res


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='one network, small pictures, three rounds')
    args = p.parse_args()
    tune_allocator()
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads; {bf16_reason("cpu")[1]}\n')
    print('| network | px | | variant | images/s | ratio to fp32 (smallest to largest) |\n| --- | --- | --- | --- | --- | --- |')
    for name in ('tf_efficientnet_lite0',) if args.quick else ('tf_efficientnet_lite0', 'resnet18'):
        for size in (64,) if args.quick else (64, 224):
            for train in (False, True):
                res = measure(name, size, train, 32, 3 if args.quick else 5)
                for k, v in res.items():
                    ratios = sorted(a / b for a, b in zip(v, res['fp32']))
                    print(f'| {name} | {size} | {"train" if train else "infer"} | {k} | {statistics.median(v):.0f} | '
                          f'{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |', flush=True)


if __name__ == '__main__': main()
