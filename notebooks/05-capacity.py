# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many streams at once?
#
# Reads a capacity search: the one whose folder the environment variable `EARMARK_CAPACITY` names, else the newest under `reports/capacity`.
# Make one with `nox -s capacity -- --engine sphinx`, for your own limits with `--slo word_p95=0.8`. Where there is none it makes an
# example in half a minute, on an engine that has hearing for six streams and a half.

# %%
import style

style.use()

import tempfile
from pathlib import Path

from harness import example, report
from harness.capacity import reading
from harness.report import charts, figures, ladders
from harness.report.cells import curve

ALLOWANCE_SECONDS = 0.1  # a rise of the latency that nobody minds

folder = reading.newest()
if folder is None:
    print(
        "There is no capacity search yet: this is an example made just now, on an engine that has hearing for 6.5 streams."
    )
    print("Make a real one with `nox -s capacity` and run this notebook again.")
    with tempfile.TemporaryDirectory() as scratch:
        found = reading.read(example.capacity(Path(scratch)))
else:
    found = reading.read(folder)
    print(folder)
print(found.ladder.sentence)

# %% [markdown]
# ## The ladder
#
# Each mark is one measurement, the bar its 95 % interval where there are streams enough for one, the dashed line the limit. The
# answer is the largest number of streams that held every limit, errors, drift and word error rate among them.

# %%
ladders.figure(found.ladder)

# %%
ladders.table(found.ladder).frame()

# %% [markdown]
# ## The knee
#
# Up to its capacity a server is as fast with many streams as with one. What each number of streams adds to the latency, utterance by
# utterance against the same utterance alone, shows where that ends.

# %%
charts.rise_by_load(
    reading.rises(found), ALLOWANCE_SECONDS, "Rise over one stream", f"{reading.RISING[found.rising]},\nrise (ms)"
)

# %% [markdown]
# ## Latency by number of streams

# %%
figures.distribution([curve(cell, "word_emission_latency") for cell in found.cells], "Word latency", "word latency (s)")

# %% [markdown]
# ## Numbers

# %%
report.numbers(found.cells)

# %% [markdown]
# ## Conclusion

# %%
for sentence in reading.conclude(found, ALLOWANCE_SECONDS):
    print("-", sentence)
