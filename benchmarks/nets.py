"""Training and prediction of the LSTM against a hand-written PyTorch loop on the same data, and the memory of
the windows.

    python benchmarks/nets.py [--tickers 100] [--sessions 600] [--features 158] [--sequence 60] [--repeats 3]

The hand-written loop draws the same rows, cuts the same windows, and has the same network, loss, clipping and
optimiser, without Lightning. Times are CPU seconds, the best of the repeats. On a busy machine the two differ
by more than Lightning costs, so its overhead is measured alone too, on steps with hardly anything to compute.
"""

import argparse
import os
import resource
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def make_data(tickers: int, sessions: int, features: int):
    "Random features and labels as a dataset."
    import pandas as pd
    import torch

    from stockpredict.catalogue.design_matrix import Inputs
    from stockpredict.models.dataset import Dataset

    draw = torch.Generator().manual_seed(0)
    inputs = Inputs(
        torch.rand(sessions, tickers, features, generator=draw) - 0.5,
        torch.ones(sessions, tickers, dtype=torch.bool),
        torch.full((sessions, tickers), 0.02),
        torch.ones(features),
        pd.bdate_range("2015-01-01", periods=sessions),
        [f"T{i:04d}" for i in range(tickers)],
        tuple(f"f{i}" for i in range(features)),
    )
    y = 0.02 * torch.randn(sessions, tickers, 2, generator=draw)
    return Dataset(inputs, y, (1, 5))


def by_hand(net, batches, epochs: int, rate: float):
    "The loop that one would write without this package."
    import torch

    from stockpredict.models.nets import head_loss

    train, check = batches
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    best, weights = float("inf"), None
    for _ in range(epochs):
        net.train()
        for x, y in train:
            optimiser.zero_grad()
            head_loss(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        net.eval()
        with torch.no_grad():
            losses = [(head_loss(net(x), y).item(), len(x)) for x, y in check]
        loss = sum(v * n for v, n in losses) / sum(n for _, n in losses)
        if loss < best:
            best, weights = loss, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(weights)
    return best


def cpu_seconds(work, *args):
    "CPU seconds of a call, and its result."
    begin = time.process_time()
    result = work(*args)
    return time.process_time() - begin, result


def peak() -> float:
    "Largest memory of the process so far, in GiB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in dict(
        tickers=100, sessions=600, features=158, sequence=60, rows=10_000, repeats=3
    ).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="lstm")
    o = parser.parse_args()
    import torch

    from stockpredict.models.contract import make_model
    from stockpredict.models.nets import Batches, net_labels, train_net, windows, with_presence

    torch.set_num_threads(1)
    data, before = make_data(o.tickers, o.sessions, o.features), peak()
    panel = data.inputs.x.nbytes / 2**30
    model = make_model(o.model, sequence=o.sequence, rows=o.rows, seed=1)
    model.names, model.horizons = list(data.inputs.names), data.horizons
    first, second = data.split()
    x = with_presence(data.inputs)

    def parts():
        return [
            Batches(x, net_labels(p), p.rows(o.sequence), o.sequence, most=most, seed=1, fixed=p is second)
            for p, most in ((first, o.rows), (second, 2048))
        ]

    def fresh():
        torch.manual_seed(1)
        return model.new_net()

    def small(both):
        "The same parts with one small batch each."
        for part in both:
            part.most, part.size = 32, 32
        return both

    def tiny(steps):
        "So many batches of two rows, in which the network costs next to nothing."
        train, check = small(parts())
        train.most, train.size = 2 * steps, 2
        return train, check

    train_net(fresh(), small(parts()), 1, model.rate)  # Lightning is imported before anything is timed
    ways = dict(ours=train_net, hand=by_hand)
    times, losses = {way: [] for way in ways}, {}
    for k in range(o.repeats):
        for way in list(ways)[:: 1 if k % 2 else -1]:  # each way is first as often as second
            net, both = fresh(), parts()
            seconds, losses[way] = cpu_seconds(ways[way], net, both, 2, model.rate)
            times[way].append(seconds)
    ours, hand = (min(times[k]) for k in ("ours", "hand"))
    print(f"training: {ours:.2f} CPU s, by hand {hand:.2f}: {hand / ours:.0%} of its speed; losses {losses}")
    steps = 400
    few = {
        way: min(cpu_seconds(work, fresh(), tiny(steps), 2, model.rate)[0] for _ in range(3))
        for way, work in ways.items()
    }
    overhead, count = (few["ours"] - few["hand"]) / (2 * steps), sum(len(p) for p in parts()) * 2
    print(
        f"overhead: {1000 * overhead:.2f} CPU ms a step, {overhead * count / hand:.1%} of the training above"
    )
    every = len(first.rows(o.sequence)[0]) * o.sequence * (o.features + 1) * 4 / 2**30
    print(f"memory: panel {panel:.2f} GiB, peak {peak() - before:.2f} more; all windows would be {every:.1f}")
    model.net = net.eval()
    rows = [v[:10_000] for v in data.rows(o.sequence)]
    sessions = -(-10_000 // o.tickers)
    stop = len(data.inputs.sessions)
    whole = windows(x, *rows, o.sequence)

    def bare():
        with torch.inference_mode():
            return [net(part) for part in whole.split(256)]

    predict = min(cpu_seconds(model.outputs, data.inputs, stop - sessions, stop)[0] for _ in range(o.repeats))
    module = min(cpu_seconds(bare)[0] for _ in range(o.repeats))
    print(f"10,000 windows: {predict:.2f} CPU s, the bare module {module:.2f}: {predict / module:.2f} times")


if __name__ == "__main__":
    main()
