"""Alpha158 of a whole market on a GPU, as a ratio to the time the device takes to copy the result once.

    python benchmarks/gpu.py [--tickers 10000] [--sessions 2520] [--rounds 3]

The floor of any such computation is writing the result: its bytes over the bandwidth of the device, which is
measured here by copying (read and write counted). The values are first compared with a processor's on a small
market. Without a CUDA device the script says so and ends well.
"""

import argparse
import time

import torch
from latest import market

from stockpredict.catalogue.feature import compute, compute_each


def bandwidth(size: int = 1 << 30, rounds: int = 10) -> float:  # bytes a second, read and write
    "What a plain copy on the device reaches."
    a = torch.empty(size, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    b.copy_(a)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(rounds):
        b.copy_(a)
    torch.cuda.synchronize()
    return 2 * size * rounds / (time.perf_counter() - begin)


def parity(
    names,
) -> tuple[int, float]:  # columns defined at different places; greatest distance in spreads of a column
    "Both devices on a small market with gaps."
    small = market(40, 700, 0.3)
    here, there = compute(small, names), compute(small.to("cuda"), names)
    apart, worst = 0, 0.0
    for name, x in here.items():
        y = there[name].cpu()
        apart += not torch.equal(x.isnan(), y.isnan())
        both = ~(x.isnan() | y.isnan())
        if both.any():
            worst = max(worst, float((x - y)[both].abs().max() / x[both].std().clamp(min=1e-9)))
    return apart, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in dict(tickers=10_000, sessions=2_520, rounds=3).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        return print("There is no CUDA device here; nothing was measured.")
    names = ["alpha158"]
    apart, worst = parity(names)
    print(
        f"{torch.cuda.get_device_name()}; processor and device: {apart} columns defined elsewhere, "
        f"greatest distance {worst:.1e} of a column's spread"
    )
    speed, panel = bandwidth(), market(a.tickers, a.sessions, 0.0).to("cuda")
    took = []
    for _ in range(a.rounds + 1):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin, count = time.perf_counter(), 0
        for _f, _x in compute_each(panel, names, 32):
            count += 1
        torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    floor = 4 * a.tickers * a.sessions * count / (speed / 2)
    print(
        f"{a.tickers:,} tickers x {a.sessions:,} sessions x {count} features: {min(took[1:]):.3f} s "
        f"(first {took[0]:.1f} s), "
        f"copy at {speed / 1e12:.2f} TB/s, the result copied once {floor * 1000:.1f} ms, ratio "
        f"{min(took[1:]) / floor:.0f}, "
        f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()
