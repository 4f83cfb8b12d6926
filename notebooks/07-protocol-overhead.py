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
# # What does a protocol cost?
#
# The same utterances under the same load over each surface. Reads the study that `EARMARK_STUDY` names if it varies the protocol, else the
# newest such study under `reports/studies`. Make one with `nox -s study -- studies/protocols.toml`. Where there is none it makes an example
# in a quarter of a minute, on an engine that answers after 20 ms.

# %%
import style

style.use()

import tempfile
from pathlib import Path

from IPython.display import display

from harness import example, gate, overhead
from harness.report import charts, studies

found = studies.newest(varying=overhead.PROTOCOL)
scratch = tempfile.TemporaryDirectory()
if found is None:
    print(
        "There is no study of protocols yet: this is an example made just now, on an engine that answers after 20 ms."
    )
    print("Make a real one with `nox -s study -- studies/protocols.toml` and run this notebook again.")
    found = example.protocols(Path(scratch.name))
else:
    print(found)
table = studies.read(found)
pairs = overhead.pairs(table)
print(len(table.frame), "cells,", len(table.sound), "of them sound;", *(pair.name for pair in pairs))
print(*studies.caveats(table), sep="\n")

# %% [markdown]
# ## The cells

# %%
studies.numbers(table)

# %% [markdown]
# ## Differences, utterance by utterance
#
# Each utterance is compared with itself over the other protocol, so what makes an utterance slow for both is no part of the difference.

# %%
charts.differences(overhead.bars(pairs), "; ".join(pair.name for pair in pairs), "difference (ms)", scale=1000)

# %%
for pair in pairs:
    print(pair.name, "(before: the first, now: the second)" if not pair.result.refused else pair.result.sentence())
    display(gate.frame(pair.result))

# %% [markdown]
# ## What it does to the server
#
# Measured once per cell, without an interval: whether the protocols differ here cannot be told from one pair of cells.

# %%
studies.by_setting(table, "server_cpu_seconds_per_audio_second")

# %% [markdown]
# ## Bytes
#
# Counted from the frames a client sends and the headers round them, TCP's left out; of whole recordings ten seconds. PCM is 32 kB/s.

# %%
overhead.upstream_table(list(dict.fromkeys(table.frame[overhead.PROTOCOL])), (20, 80, 320))

# %% [markdown]
# ## Conclusion

# %%
for sentence in overhead.conclude(pairs):
    print("-", sentence)
