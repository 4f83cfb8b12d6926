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
# # How good is nano?
#
# `models/nano` is a Voxtral Realtime of a few million parameters that this project trains itself, on synthetic voices and a small language
# of numbers, dates, letters and commands. It proves the whole path, vLLM included, on a machine without a GPU; it does not
# recognise your meetings. Reads what its training left in `models/nano`, and the newest runs over `spoken-numbers`. Make them with
# `nox -s bench -- --engine vllm --delay-ms 80,160,480,960,2400 --concurrency 16`.

# %%
import style

style.use()

import json
from pathlib import Path

from harness import report
from harness.report import figures, words
from harness.report.cells import (
    chosen_folders,
    curve,
    delay_steps,
    load,
    wer_by_delay,
    wer_by_speaker,
    worst,
)
from harness.report.findings import headline

NANO = Path("models/nano")
STRANGER = "awb"  # a voice that nano was never trained on

cells = load(chosen_folders(whole_bench=True, dataset="spoken-numbers"))
print(headline(cells))
print(*{c.run.config.caveat for c in cells}, sep="\n")

# %% [markdown]
# ## How it learned
#
# Word error rates in transformers on sentences kept apart, at 480 ms, while it was trained. The rate falls once more at the end, when
# the steps become small.

# %%
log = [json.loads(line) for line in (NANO / "training.jsonl").read_text().splitlines()]
points = [(entry["minutes"], entry["evaluation"]["by_voice"]) for entry in log if "evaluation" in entry]
voices = sorted(points[-1][1])
figures.progress(
    {
        f"{voice}{', never heard' if voice == STRANGER else ''}": [(m, rates[voice] / 100) for m, rates in points]
        for voice in voices
    },
    "Word error rate while training",
    "minutes of training on two cores",
)

# %% [markdown]
# ## Accuracy by delay
#
# Longer waiting helps where a later word tells what an earlier one was: seventeen or seventy, for or four.

# %%
figures.rate_by_delay(wer_by_delay(cells))

# %%
delay_steps(cells)

# %% [markdown]
# ## Voices it knows, and one that it does not
#
# The test sentences are new for all of them.

# %%
wer_by_speaker(cells).style.format({"wer": "{:.1%}", "low": "{:.1%}", "high": "{:.1%}"}).hide(axis="index")

# %% [markdown]
# ## When is a word shown?
#
# The dotted line is the delay asked for. A word is said one step of 80 ms after its mark, and steps are whole: about 100 ms are the
# model's own.

# %%
figures.distribution(
    [curve(c, "word_emission_latency", nominal=True) for c in cells], "Word latency", "word latency (s)"
)

# %% [markdown]
# ## What it confuses

# %%
words.confusions_by_cell(cells, 20)

# %%
worst(cells[-1], 8)

# %% [markdown]
# ## Numbers

# %%
report.numbers(cells)

# %% [markdown]
# ## What it is not
#
# Its vocabulary is closed: any other word comes out as one it knows. All its voices are synthetic, so that people fare worse. What it
# says is the same alone and among others (float32), whatever serves it: `tests/vllm` holds it against transformers token by token.
