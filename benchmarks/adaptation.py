"""How fast intervals should adapt, chosen on simulated markets only: pinball loss and coverage by `RATE`.

    python benchmarks/adaptation.py [--seeds 3]

The rule, fixed before looking: over simulated markets of three kinds, the rate with the smallest mean
pinball loss of the 5 % and 95 % quantiles, each kind weighted alike. No real price enters. They differ in
what the volatility model leaves over, the width of the residuals of a session in units of its forecast:

- still: always one, with fat tails (Student t, 5)
- drift: its logarithm is an autoregression that forgets in 60 sessions, standard deviation 0.2
- breaks: it doubles or halves at random, once a year on average

Printed with three seeds: 0.06 has the smallest mean loss, .9537 of that without adaptation (1.0055 still,
.9845 drift, .8712 breaks); .04 and .08 are within .003 of it.
"""

import argparse

import numpy as np

from stockpredict.models import calibration

RATES = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2)
LEVELS, SESSIONS, NAMES = (0.05, 0.95), 1000, 60


def widths(kind: str, rng) -> np.ndarray:
    "Width of the residuals of each session."
    if kind == "still":
        return np.ones(SESSIONS)
    if kind == "drift":
        log = np.zeros(SESSIONS)
        keep = np.exp(-1 / 60)
        for t in range(1, SESSIONS):
            log[t] = keep * log[t - 1] + 0.2 * np.sqrt(1 - keep**2) * rng.standard_normal()
        return np.exp(log)
    turns = np.cumsum(rng.random(SESSIONS) < 1 / 250)
    return np.where(turns % 2 == 0, 1.0, 2.0)


def outcome(kind: str, seed: int) -> dict:
    "Pinball loss and coverage of each rate in one market, after the first 300 sessions."
    rng = np.random.default_rng([seed, len(kind)])
    common, own = (rng.standard_t(5, (SESSIONS, n, 1)) / np.sqrt(5 / 3) for n in (1, NAMES))
    u = widths(kind, rng)[:, None, None] * (np.sqrt(0.2) * common + np.sqrt(0.8) * own)
    shares, count = calibration.outcome_shares(u)
    q = np.quantile(u[:250], LEVELS)[None]
    known, rows = (np.arange(SESSIONS) - 1)[:, None], {}
    for rate in RATES:
        calibration.RATE = rate
        log = calibration.adapted_log_widths(shares, count, q, LEVELS, known, (1,))
        end = (q * np.exp(log))[300:, :, None, :]
        gap = u[300:, :, :, None].transpose(0, 2, 1, 3) - end
        loss = np.maximum(np.array(LEVELS) * gap, (np.array(LEVELS) - 1) * gap).mean()
        inside = (gap[..., 0] >= 0) & (gap[..., 1] <= 0)
        rows[rate] = (loss, inside.mean(), np.abs(inside.reshape(-1, 50, NAMES).mean((1, 2)) - 0.9).mean())
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds, chosen = parser.parse_args().seeds, calibration.RATE
    total = dict.fromkeys(RATES, 0.0)
    for kind in ("still", "drift", "breaks"):
        markets = [outcome(kind, seed) for seed in range(seeds)]
        base = np.mean([m[0.0][0] for m in markets])
        print(f"{kind}: rate, pinball loss over that of rate 0, coverage, mean error of 50 sessions")
        for rate in RATES:
            loss, inside, error = np.mean([m[rate] for m in markets], 0)
            total[rate] += loss / base / 3
            print(f"  {rate:<5} {loss / base:.4f} {inside:.3f} {error:.3f}", flush=True)
    best = min(total, key=total.get)
    print(f"smallest mean loss: {best} ({total[best]:.4f}); in use: {chosen} ({total.get(chosen, 0):.4f})")


if __name__ == "__main__":
    main()
