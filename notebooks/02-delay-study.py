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
# # Which transcription delay?
#
# A recogniser that may listen longer before it commits to a word makes fewer errors and shows each word later. Reads the newest runs that
# differ in nothing but the delay and the concurrency, or those in `EARMARK_RUNS`. Make them with
# `nox -s bench -- --delay-ms 160,480,960,2400`.

# %%
import style

style.use()

from harness import report
from harness.report import figures
from harness.report.cells import (
    chosen_folders,
    curve,
    delay_steps,
    load,
    published_for,
    trade,
    wer_by_delay,
)
from harness.report.findings import choose_delay, headline

cells = load(chosen_folders(whole_bench=True))
print(headline(cells))
print(*{c.run.config.caveat for c in cells}, sep="\n")
print(len({c.run.config.delay_ms for c in cells}), "delays,", len(cells), "cells")

# %% [markdown]
# ## Accuracy by delay
#
# Where the model is a Voxtral, the published curve of the large one on another corpus lies behind, for its shape.

# %%
figures.rate_by_delay(wer_by_delay(cells), published=published_for(cells))

# %% [markdown]
# The cells replay the same utterances, so differences are compared utterance by utterance, which is far sharper than comparing the
# bars above.

# %%
delay_steps(cells)

# %% [markdown]
# ## Latency by delay

# %%
figures.quantile_rows(
    [(c.mark, c.scores.latency["word_emission_latency"]) for c in cells], "Word latency by cell", "word latency (s)"
)

# %%
figures.distribution(
    [curve(c, "word_emission_latency", nominal=True) for c in cells], "Word latency", "word latency (s)"
)

# %% [markdown]
# ## The trade: lower left is better

# %%
figures.trade_off(trade(cells), "Error rate against word latency", "word latency, median (s)")

# %% [markdown]
# ## Numbers

# %%
report.numbers(cells)

# %% [markdown]
# ## Conclusion

# %%
print(choose_delay(cells))
