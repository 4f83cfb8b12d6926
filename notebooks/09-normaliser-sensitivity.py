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
# # How much of the error rate is spelling?
#
# The same transcripts counted under each normaliser. Reads the newest runs that differ in nothing but the delay and the concurrency, or
# those in `EARMARK_RUNS`; make them with `nox -s bench`.

# %%
import style

style.use()

from IPython.display import display

from harness.report import charts, figures, normalisers
from harness.report.cells import chosen_folders, load
from harness.report.findings import headline

EXAMPLES = 3

cells = load(chosen_folders(whole_bench=True))
cell = cells[-1]
print(headline(cells))
print(*{c.run.config.caveat for c in cells}, sep="\n")
print("Examples and differences are of", cell.run.id)

# %% [markdown]
# ## The rate under each

# %%
figures.share_rows(normalisers.rates(cells), "Word error rate by normaliser", "word error rate")

# %% [markdown]
# ## What each changes
#
# Utterance by utterance against the run's own normaliser. A normaliser changes the number of reference words as well as the errors.

# %%
counted = normalisers.recounts(cell)
choices = normalisers.choices(cell, counted)
charts.differences(
    [charts.Bar(one.name, one.change, one.verdict != "cannot tell") for one in choices],
    f"Against {cell.run.config.normaliser}", "difference in word error rate (points)", scale=100,
)  # fmt: skip

# %%
normalisers.table(cell, choices)

# %% [markdown]
# ## Examples
#
# What is compared, as each normaliser leaves it.

# %%
for choice in choices:
    display(normalisers.examples(cell, counted, choice.name, EXAMPLES))

# %% [markdown]
# ## Conclusion

# %%
for sentence in normalisers.conclude(cell, choices):
    print("-", sentence)
