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
# # Which server settings?
#
# Reads a study: the one that the environment variable `EARMARK_STUDY` names (its folder or `study.parquet`), else the newest under
# `reports/studies`. Made for `studies/gpu-tuning.toml`, it shows any study, whatever it varies:
# `nox -s study -- studies/gpu-tuning.toml`. Where there is none it makes an example of two servers and four cells, in half a minute.

# %%
import style

style.use()

import os
import tempfile
from pathlib import Path

from IPython.display import display

from harness import example
from harness.report import studies

BOUND_SECONDS = float(os.environ.get("EARMARK_BOUND_SECONDS", "1.0"))  # the tail of the latency may be so long

found = studies.newest()
if found is None:
    print("There is no study yet: this one is an example made just now, on an engine that is late on purpose.")
    print("Make a real one with `nox -s study -- studies/gpu-tuning.toml` and run this notebook again.")
    with tempfile.TemporaryDirectory() as folder:
        table = studies.read(example.study(Path(folder)))
else:
    table = studies.read(found)
    print(found)
print(table.name, "varies", ", ".join(table.label(name) for name in table.varied) or "nothing")
print(len(table.frame), "cells,", len(table.sound), "of them sound")
print(*studies.caveats(table), sep="\n")

# %% [markdown]
# ## The numbers

# %%
studies.numbers(table)

# %% [markdown]
# ## Latency over each setting
#
# A line joins cells that agree in everything else. Bars are 95 % intervals; where there is none, n is too small for one.

# %%
if table.latency:
    display(studies.by_setting(table, table.latency))

# %% [markdown]
# ## Error rate over each setting
#
# Settings of speed should leave the text alone.

# %%
studies.by_setting(table, table.rate)

# %% [markdown]
# ## What it costs
#
# Processor time of the server per second of audio, and how many seconds of audio it got through per second: at real-time pace that is
# how many streams were open, as long as it kept up.

# %%
studies.by_setting(table, "server_cpu_seconds_per_audio_second")

# %%
studies.by_setting(table, "audio_seconds_per_second")

# %% [markdown]
# ## What each step of a setting changes
#
# The median over pairs of cells that agree in everything else, and in brackets the smallest and the largest change.

# %%
studies.effects(table)

# %% [markdown]
# ## Conclusion

# %%
for sentence in studies.conclude(table, BOUND_SECONDS):
    print("-", sentence)
