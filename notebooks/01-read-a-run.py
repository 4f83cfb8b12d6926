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
# # What does a run say?
#
# Reads the newest runs under `reports/runs`, or those named in the environment variable `EARMARK_RUNS` (run folders, or folders of
# them). Every figure comes from the recorded timeline by the functions that make the report; nothing is computed here
# in a second way.

# %%
import style

style.use()

from harness import report
from harness.report import figures
from harness.report.cells import (
    chosen_folders,
    curve,
    error_rates,
    lag_lines,
    lengths_and_rates,
    load,
    typical_stream,
    worst,
)
from harness.report.findings import findings, headline

cells = load(chosen_folders())
cell = cells[0]
print(headline(cells))
print(*{c.run.config.caveat for c in cells}, sep="\n")

# %% [markdown]
# ## The numbers, with intervals

# %%
report.numbers(cells)

# %% [markdown]
# ## How long until a word is shown?
#
# The curve ends below 100 % by the words that were never recognised. The dotted line is the delay that was asked for: what lies
# between it and the curve is the price of serving.

# %%
figures.distribution(
    [curve(c, "word_emission_latency", nominal=True) for c in cells], "Word latency", "word latency (s)"
)

# %%
figures.distribution([curve(c, "time_to_final") for c in cells], "Time to final", "time to final (s)")

# %% [markdown]
# ## One utterance as it happened
#
# The stream whose median word latency is the median of the run. Each bar spans from when a word was spoken to when it was shown.

# %%
typical_stream(cell)

# %% [markdown]
# ## Does the transcript keep up?

# %%
figures.lag_over_time(
    lag_lines(cell), cell.mark, f"Transcript lag, {cell.mark.label or 'all streams'}", cell.delay_seconds
)

# %% [markdown]
# ## Where are the errors?

# %%
figures.error_split(error_rates(cells))

# %%
figures.rates(
    [(cell.mark, *lengths_and_rates(cell))], "Error rate by length of the utterance", "audio (s)", "word error rate"
)

# %%
worst(cell, 10)

# %% [markdown]
# ## Conclusion

# %%
print(headline(cells))
for sentence in findings(cells):
    print("-", sentence)
