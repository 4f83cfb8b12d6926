"""What the words of a report mean."""

from __future__ import annotations

TERMS = {
    "WER": "Word error rate: substituted + deleted + inserted words, over the reference words. Counts are added over the corpus "
    "before dividing; failed and empty streams count as all deleted.",
    "raw WER": "The same before any normalisation: case, punctuation and spelling variants count as errors.",
    "CER": "Character error rate, after normalisation.",
    "95 % interval": "Where the figure would fall in 95 of 100 repetitions with other recordings, from a bootstrap over "
    "recordings or speakers. A p95 needs 72 independent streams for one, a p99 368.",
    "transcription delay": "How long the recogniser is allowed to listen on before it commits to a word.",
    "first token": "First text received, less the moment the first word was spoken (from onset) or the stream's planned start.",
    "word latency": "Word emission latency: when a word was first shown correctly, less when it had been spoken. It contains the "
    "transcription delay. Words never recognised have none; they are counted.",
    "word finality": "The same, up to the moment after which the word never changed again.",
    "excess latency": "Median word latency less the transcription delay: what serving, network, packets and alignment cost.",
    "time to final": "Final transcript received, less the end of the last spoken word.",
    "flush latency": "Final transcript received, less the sending of the end-of-audio message.",
    "stalls": "Gaps without new text longer than 2 s plus the delay while three or more words were spoken.",
    "unstable words": "Words of partial transcripts that were later changed or removed, over the words of the final.",
    "lost tail": "Reference words after the last one recognised correctly.",
    "transcript lag": "Audio sent less the end of the newest word transcribed. Its slope is the drift: a stream "
    "keeps up when that is not above 0.",
    "pacing": "How late packets left the load generator. Above 20 ms (or half a packet) at p99 the run measures "
    "the generator and is invalid.",
    "real-time factor": "Wall time over audio time, for unpaced runs only; below 1 is faster than the audio.",
    "median stream": "The stream in the middle when streams are ordered by the figure in question.",
    "streams at once": "How many utterances were in flight at any time.",
    "valid": "The load generator kept its own schedule and the run was scored in full; only valid runs pass a gate.",
}
OUTCOME_TERMS = {
    "ok": "a final transcript came",
    "failed": "the server said error, the connection broke, or no final came in time",
    "rejected": "the server refused the session for want of capacity",
    "abandoned": "the run was interrupted while the stream was in flight",
}
