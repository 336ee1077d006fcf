"""From a study to a figure of one's own: a grid with seeds, its runs as plain records, a plot.

    python examples/study_figure.py [FOLDER]

Started again it goes on with what is missing; `splitlab report FOLDER` draws the usual figures.
"""

import sys
from statistics import fmean, stdev

import matplotlib.pyplot as plt

from splitlab.core import load_runs, study

folder = sys.argv[1] if len(sys.argv) > 1 else "studies/cuts"
study("adc/split-point", output=folder, over={"cut": [1, 3]}, seeds=2, budget="steps=30")
runs = load_runs(folder).table()  # plain dictionaries, for pandas or for a loop
for stack in sorted({run["stack"] for run in runs}):
    cuts = sorted({run["cut"] for run in runs if run["stack"] == stack})
    accuracies = [
        [run["accuracy"] for run in runs if (run["stack"], run["cut"]) == (stack, cut)]
        for cut in cuts
    ]
    means, spread = map(fmean, accuracies), map(stdev, accuracies)
    plt.errorbar(cuts, [*means], [*spread], marker="o", capsize=3, label=stack)
plt.gca().set(xlabel="cut: blocks at the client", ylabel="test accuracy", xticks=[1, 3])
plt.legend()
plt.savefig(f"{folder}/cuts.svg")
print(f"{len(runs)} runs, drawn in {folder}/cuts.svg")
