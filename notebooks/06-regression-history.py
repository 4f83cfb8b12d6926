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
# # Since when is it so?
#
# Reads `reports/history.parquet`, which `earmark history RUN...` and `nox -s gate -- --history` write, the baselines under
# `reports/baselines` and the runs under `reports/runs` or in `EARMARK_RUNS`. Where there is no history yet, begin one: run
# `earmark history reports/runs` after each bench. Runs are of one series when machine, corpus, engine and load agree.

# %%
import style

style.use()

from pathlib import Path

from IPython.display import display

from harness import example, gate
from harness.gate import history
from harness.report import charts
from harness.report.cells import every_folder

HISTORY = Path("reports/history.parquet")
BASELINES = Path("reports/baselines")
DRAWN = 4  # series that are shown as plots

records, left_out = gate.known(every_folder(), sorted(BASELINES.glob("*.json")))
rows = gate.collected(HISTORY, records)
series = gate.since_when(rows)
print(f"{HISTORY}: {'there' if HISTORY.exists() else 'not there yet: `earmark history reports/runs` begins one'}")
print(
    len({row["run"] for row in rows}),
    "runs,",
    len(series),
    "series,",
    sum(one.too_short for one in series),
    "too short to tell",
)
print(*(f"left out: {reason}" for reason in left_out), sep="\n")

# %% [markdown]
# ## The series
#
# Those that changed come first, then the longest.

# %%
ordered = sorted(series, key=lambda one: (-len(one.levels), -len(one.values)))
history.frame(ordered[:30])


# %%
def shown(one):
    metric = gate.METRICS[one.metric]
    return charts.over_runs(
        one.values, one.names, one.stretches, [(level.change.earliest, level.change.latest) for level in one.levels],
        f"{metric.label}, {one.engine} on {one.dataset}, {one.cell}",
        metric.label if metric.percent else f"{metric.label} ({metric.unit})", percent=metric.percent,
    )  # fmt: skip


for one in ordered[:DRAWN]:
    if not one.too_short:
        display(shown(one))
if all(one.too_short for one in ordered):
    print(f"No series is long enough: it takes {history.shortest_that_tells()} runs.")

# %% [markdown]
# ## What a change looks like
#
# A check of the instrument, not a finding: the utterances of one real run drawn anew eighteen times, and from the eleventh on every
# latency 0.2 s longer. The change has to be found there, and nowhere in the word error rate.

# %%
drawn = gate.since_when(example.history(records[0]))
for one in drawn:
    if one.metric in ("word_p50", "wer"):
        display(shown(one))

# %%
for sentence in history.conclude([one for one in drawn if one.metric in ("word_p50", "time_to_final", "wer")]):
    print("-", sentence)

# %% [markdown]
# ## Conclusion

# %%
for sentence in history.conclude(series):
    print("-", sentence)
