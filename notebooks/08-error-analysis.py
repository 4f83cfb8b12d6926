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
# # Where are the errors?
#
# Which words, which speakers, what is taken for what, and what a longer delay mends. Reads the newest runs that differ in nothing but the
# delay and the concurrency, or those in `EARMARK_RUNS`. Make them with `nox -s bench`; more utterances (no `--limit`) tell more.

# %%
import style

style.use()

from harness.report import charts, figures, words
from harness.report.cells import chosen_folders, error_rates, load, speaker_rates
from harness.report.findings import headline

cells = load(chosen_folders(whole_bench=True))
shortest, last = words.ends(cells)
print(headline(cells))
print(*{c.run.config.caveat for c in cells}, sep="\n")

# %% [markdown]
# ## Which kinds?

# %%
figures.error_split(error_rates(cells))

# %%
steps = words.kinds_by_delay(cells)
charts.differences(
    [charts.Bar(f"{kind.name}, {step}", kind.change, kind.verdict != "cannot tell") for step, kinds in steps for kind in kinds],
    "What each longer delay changes", "errors per 100 reference words", scale=100,
)  # fmt: skip

# %% [markdown]
# ## Which words?
#
# The commonest words at the longest delay, each against all the others. Of many words some seem hard by chance: p is corrected
# for that (Holm).

# %%
words.table(words.hard_words(last)[:20], "word", "against the others")

# %% [markdown]
# ## Which speakers?

# %%
figures.share_rows(speaker_rates(cells), "Word error rate by speaker", "word error rate")

# %%
words.table(words.speakers(last), "speaker", "against the others")

# %% [markdown]
# ## What is taken for what?
#
# Counts of these runs. An empty side is a word that was lost, or made up.

# %%
words.confusions_by_cell(cells, 20)

# %% [markdown]
# ## What does the longest delay mend?

# %%
words.table(
    words.mended_words(shortest, last)[:12], "word", "change"
) if shortest is not last else "Only one delay was run."

# %% [markdown]
# ## The worst utterances
#
# `[said→heard]`, `[−lost]`, `[+made up]`, as the last cell heard them.

# %%
words.worst_everywhere(cells, 8)

# %% [markdown]
# ## Conclusion

# %%
for sentence in words.conclude(cells):
    print("-", sentence)
